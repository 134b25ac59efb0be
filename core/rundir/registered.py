"""What a run directory was registered to compare before its first run, by its journal, and whether
that was changed since."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from core.experiment import events, registration
from core.experiment.registration import Registration
from core.rundir import about
from core.rundir.journal import stream_events


class Registered(NamedTuple):
    """`first`: None for a run directory that does not say; `changes`: a sentence each."""

    first: Registration | None
    changes: list[str]


def read(path: Path) -> Registered:
    """FileError if run.json or the journal cannot be read."""
    first, changes = None, list[str]()
    for event in stream_events(path):
        if isinstance(event, events.ExperimentStarted):
            first = event.registered
        elif isinstance(event, events.ExperimentResumed) and first and event.registered:
            changes.append(_sentence("experiments.toml, when resumed", first, event.registered))
    written = about.read(path).registered
    if first and written and written != first:
        changes.append(_sentence("run.json", first, written))
    return Registered(first or written, list(dict.fromkeys(changes)))


def _sentence(where: str, first: Registration, later: Registration) -> str:
    changed = "; ".join(registration.changes(first, later))
    return f"changed after the first run began, and not followed: {changed} ({where})"
