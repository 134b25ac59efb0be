"""What an ended run's result says about its load client: how late it was, and why the run's figures
are doubtful."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from core.errors import FileError

if TYPE_CHECKING:
    from core.validity.problem import Validity

FINDINGS = "findings.json"


@dataclass(frozen=True, slots=True)
class Client:
    """`loop_lag_p99_ms`: how late the client's event loop was. `warnings`: the validity rules
    that the run breaks."""

    loop_lag_p99_ms: float | None = None
    warnings: tuple[str, ...] = ()


def client(run_dir: Path, run: str, result: str) -> Client | None:
    """The client of a run, by its result file, and what is wrong with the run; None if there is no
    such file."""
    file, findings = (run_dir / result).resolve(), (run_dir / FINDINGS).resolve()
    try:
        alone, written_ns = _read(file, run), file.stat().st_mtime_ns
        judged_ns = findings.stat().st_mtime_ns if findings.exists() else 0
        # Findings older than the result: the experiment goes on.
        whole = judged(findings, judged_ns) if judged_ns >= written_ns else None
    except (OSError, msgspec.DecodeError, FileError):
        return None
    if whole is None:
        return alone
    found = [problem for problem in whole.problems if problem.concerns(run)]
    return Client(alone.loop_lag_p99_ms, tuple(f"{p.rule}: {p.sentence}" for p in found))


@lru_cache(64)
def _read(file: Path, run: str) -> Client:
    """A result is written once, so it is read once."""
    from core.rundir import result
    from core.validity import verdict

    found = result.read(file)
    problems = verdict.of_result(run, found).problems
    return Client(
        found.client.loop_lag.p99_ms if found.client else None,
        tuple(f"{problem.rule}: {problem.sentence}" for problem in problems),
    )


def findings_since(run_dir: Path, ended_at: float) -> tuple[Path, int] | None:
    """The findings of a run directory and when they were written (ns), if that was after
    `ended_at`."""
    file = (run_dir / FINDINGS).resolve()
    try:
        written = file.stat()
    except OSError:
        return None
    return (file, written.st_mtime_ns) if written.st_mtime >= ended_at else None


@lru_cache(4)
def judged(findings: Path, at_ns: int) -> Validity | None:
    """The verdict on the whole run directory, as it was at that time."""
    from core.validity.problem import Validity

    found = msgspec.json.decode(findings.read_bytes(), type=dict[str, msgspec.Raw])
    return msgspec.json.decode(found["validity"], type=Validity) if "validity" in found else None
