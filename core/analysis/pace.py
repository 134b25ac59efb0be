"""How long a start of a server and a run take, by an earlier run directory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from core.errors import GatescopeError, NoDataError
from core.experiment import events
from core.rundir import about, journal, sweep
from core.rundir.sweep import SweepFile


class Pace(NamedTuple):
    """Means in seconds; a start is from its command until it is ready."""

    start_s: float
    run_s: float
    path: Path


def read(path: Path) -> Pace:
    """The pace of a run directory or of a sweep. FileError if it is none; NoDataError if nothing
    is done there."""
    starts, runs = list[float](), list[float]()
    for own in sweep.run_directories(path).values():
        about.read(own)
        for event in journal.stream_events(own):
            match event:
                case events.BackendReady() if event.seconds:  # else it was up already
                    starts.append(event.seconds)
                case events.RunFinished():
                    runs.append(event.figures.duration_s)
    if not starts or not runs:
        raise NoDataError(f"{path}: no run is done there, so it says nothing about hours")
    return Pace(float(np.mean(starts)), float(np.mean(runs)), path)


def newest(folder: Path, asked: SweepFile) -> Pace | None:
    """The pace of the newest run directory in `folder` whose engine is the sweep's."""
    kinds = {cell.config.experiment.engine for cell in asked.cells or asked.bases}
    for path in _newest_first(folder.glob("*")):
        with contextlib.suppress(GatescopeError):
            owns = sweep.run_directories(path).values()
            if {about.read(own).engine_kind for own in owns} == kinds:
                return read(path)
    return None


def hours(pace: Pace, starts: int, runs: int) -> float:
    return (starts * pace.start_s + runs * pace.run_s) / 3600


def _newest_first(paths: Iterable[Path]) -> list[Path]:
    return sorted((p for p in paths if p.is_dir()), key=lambda p: p.stat().st_mtime, reverse=True)
