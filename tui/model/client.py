"""What an ended run's result says about its load client: how late it was, and why the run's figures
are doubtful."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import msgspec
from msgspec import Struct

FINDINGS = "findings.json"


class Lag(Struct, frozen=True):
    p99_ms: float | None = None


class Client(Struct, frozen=True):
    """`loop_lag`: how late the client's event loop was. `warnings`: the validity rules that the run
    breaks."""

    loop_lag: Lag = Lag()
    warnings: tuple[str, ...] = ()


class Result(Struct, frozen=True):
    client: Client | None = None


class Problem(Struct, frozen=True):
    """See core.validity.problem."""

    rule: str
    where: tuple[str, ...]
    sentence: str

    def concerns(self, run: str) -> bool:
        """Whether it is about the run, or about its whole backend."""
        backend = run.partition("/")[0]
        whole = (place.partition("/") for place in self.where)
        return run in self.where or any(
            b == backend and not label[:1].isdigit() for b, _, label in whole
        )


class Validity(Struct, frozen=True):
    problems: tuple[Problem, ...] = ()


class Findings(Struct, frozen=True):
    validity: Validity | None = None


def client(run_dir: Path, run: str, result: str) -> Client | None:
    """The client of a run, from its result file, and what is wrong with the run; None if there is
    no such file."""
    file, findings = (run_dir / result).resolve(), (run_dir / FINDINGS).resolve()
    try:
        alone, written_ns = _read(file, run), file.stat().st_mtime_ns
        judged_ns = findings.stat().st_mtime_ns if findings.exists() else 0
        # Findings older than the result are of an earlier part: the experiment goes on.
        whole = _judged(findings, judged_ns) if judged_ns >= written_ns else None
    except (OSError, msgspec.DecodeError):
        return None
    if whole is None:
        return alone
    return Client(
        alone.loop_lag, tuple(f"{p.rule}: {p.sentence}" for p in whole.problems if p.concerns(run))
    )


@lru_cache(64)
def _read(result: Path, run: str) -> Client:
    """A result is written once, so it is read once."""
    from core.validity import verdict

    data = result.read_bytes()
    problems = verdict.of_result(run, data).problems
    client = msgspec.json.decode(data, type=Result).client or Client()
    return Client(
        client.loop_lag, tuple(f"{problem.rule}: {problem.sentence}" for problem in problems)
    )


@lru_cache(4)
def _judged(findings: Path, at_ns: int) -> Validity | None:
    """The verdict on the whole run directory, as it was at that time."""
    return msgspec.json.decode(findings.read_bytes(), type=Findings).validity
