"""What was registered, by the journal; and who changed it since."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
from support.about import about

from core.experiment import events
from core.experiment.events import AnyEvent
from core.experiment.registration import Registration
from core.files import formatted
from core.rundir import registered

FIRST = Registration(metric="mean_tpot_ms", contrasts=["b against a"], smallest_effect_pct=2.0)
OTHER = msgspec.structs.replace(FIRST, smallest_effect_pct=5.0)


def folder(path: Path, *told: AnyEvent, **written: Any) -> Path:
    (path / "run.json").write_bytes(formatted(about(**written)))
    (path / "events.jsonl").write_bytes(b"".join(events.encode(e) + b"\n" for e in told))
    return path


def started(asked: Registration | None) -> events.ExperimentStarted:
    return events.ExperimentStarted(name="n", engine="e", runs=[], registered=asked)


def test_the_journal_rules_and_an_edited_run_json_is_named(tmp_path: Path) -> None:
    made = folder(tmp_path, started(FIRST), registered=FIRST)
    assert registered.read(made) == (FIRST, [])
    kept = json.loads((made / "run.json").read_text())
    kept["registered"]["smallest_effect_pct"] = 5
    (made / "run.json").write_text(json.dumps(kept))
    assert registered.read(made) == (
        FIRST,
        [
            "changed after the first run began, and not followed: smallest_effect_pct: 2 → 5"
            " (run.json)"
        ],
    )


def test_a_config_that_changed_by_a_resume_is_named_once(tmp_path: Path) -> None:
    again = events.ExperimentResumed(missing=1, registered=OTHER)
    made = folder(
        tmp_path,
        started(FIRST),
        again,
        again,
        events.ExperimentResumed(missing=1),
        registered=FIRST,
    )
    first, (changed,) = registered.read(made)
    assert first == FIRST
    assert changed.endswith("smallest_effect_pct: 2 → 5 (experiments.toml, when resumed)")


def test_an_older_run_directory_registered_nothing(tmp_path: Path) -> None:
    assert registered.read(folder(tmp_path, started(None))) == (None, [])
