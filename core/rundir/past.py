"""Past runs: what a folder of run directories and sweeps holds, without reading every request."""

from __future__ import annotations

import datetime
import statistics
from pathlib import Path

import msgspec
from msgspec import Struct

from core.errors import FileError
from core.experiment import control, events, state
from core.experiment.state import Snapshot
from core.rundir import sweep

QUIET = (b'{"event":"RequestFinished"', b'{"event":"Sampled"')  # nearly all of a journal


class Past(Struct, frozen=True, kw_only=True):
    """One run directory, or a sweep of so many `cells`. `tpot_ms`: by backend, the median over its
    runs of their mean TPOT; empty for a sweep."""

    path: str
    name: str
    engine: str
    started_at: float  # wall clock
    state: str  # "running", "finished", or "unfinished"
    done: int
    failed: int
    runs: int
    tpot_ms: dict[str, float | None]
    cells: int = 0

    @property
    def headline(self) -> str:
        """`TPOT ms: baseline 34.0, all2all 21.3`."""
        if self.cells:
            return f"sweep of {self.cells} cells"
        known = [f"{name} {value:.2f}" for name, value in self.tpot_ms.items() if value is not None]
        return f"TPOT ms: {', '.join(known)}" if known else "no run is done"


def of_folder(folder: Path) -> tuple[list[Past], list[str]]:
    """The run directories and sweeps in `folder`, the newest first; and which could not be read,
    and why. FileError if it is no folder."""
    if not folder.is_dir():
        raise FileError(f"{folder}: no such folder; runs are kept in runs/, or where --out says")
    found, wrong = [], []
    for read, files in (
        (of_run_directory, folder.glob("*/events.jsonl")),
        (of_sweep, folder.glob(f"*/{sweep.NAME}")),
    ):
        for file in files:
            try:
                found.append(read(file.parent))
            except FileError as error:
                wrong.append(str(error))
    return sorted(found, key=lambda past: -past.started_at), wrong


def of_run_directory(path: Path) -> Past:
    """FileError if it has no journal, or one that cannot be read."""
    journal = path / "events.jsonl"
    try:
        with open(journal, "rb") as file:
            told = [
                events.decode(line)
                for line in file
                if line.endswith(b"\n") and not line.startswith(QUIET)
            ]
    except OSError as error:
        raise FileError(f"{journal}: cannot be read: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise FileError(f"{journal}: not a journal: {error}") from None
    snapshot = state.fold(told)
    if not snapshot.started_at:
        raise FileError(f"{journal}: its beginning is missing")
    return Past(
        path=str(path),
        name=snapshot.name,
        engine=snapshot.engine,
        started_at=snapshot.started_at,
        state=_state(path, snapshot),
        done=snapshot.count("done"),
        failed=snapshot.count("failed"),
        runs=len(snapshot.runs),
        tpot_ms=_tpot_ms(snapshot),
    )


def of_sweep(path: Path) -> Past:
    """FileError if it has a cell that cannot be read."""
    asked = sweep.read(path)
    begun = [of_run_directory(own) for own in sweep.run_directories(path).values()]
    done, failed, runs = (
        sum(count)
        for count in zip((0, 0, 0), *((c.done, c.failed, c.runs) for c in begun), strict=True)
    )
    is_whole = len(begun) == len(asked.cells) and done + failed == runs
    return Past(
        path=str(path),
        name=asked.name,
        engine=begun[0].engine if begun else "",
        started_at=datetime.datetime.fromisoformat(asked.started).timestamp(),
        state="running" if sweep.is_live(path) else "finished" if is_whole else "unfinished",
        done=done,
        failed=failed,
        runs=runs,
        tpot_ms={},
        cells=len(asked.cells),
    )


def _state(path: Path, snapshot: Snapshot) -> str:
    if control.is_live(path):
        return "running"
    is_whole = snapshot.finished or not (snapshot.count("queued") or snapshot.count("running"))
    return "finished" if is_whole else "unfinished"


def _tpot_ms(snapshot: Snapshot) -> dict[str, float | None]:
    """Runs with forced routing are left out."""
    natural = [r for r in snapshot.runs.values() if not r.run.imposed]
    found: dict[str, list[float]] = {run.run.backend: [] for run in natural}
    for run in natural:
        if run.figures and (tpot := run.figures.latencies.get("tpot")):
            found[run.run.backend].append(tpot.mean)
    return {name: statistics.median(v) if v else None for name, v in found.items()}
