"""What an ended run's result says of itself: how late its load client was, and why it may not be believed."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import msgspec
from msgspec import Struct


class Lag(Struct, frozen=True):
    p99_ms: float | None = None


class Client(Struct, frozen=True):
    """`loop_lag`: how late the client's event loop was. `warnings`: what the rules of validity say of the run."""

    loop_lag: Lag = Lag()
    warnings: tuple[str, ...] = ()


class Result(Struct, frozen=True):
    client: Client | None = None


_results = msgspec.json.Decoder(Result)


def client(result: Path) -> Client | None:
    """The client of one result file; None where it is none."""
    try:
        return _read(result.resolve())
    except (OSError, msgspec.DecodeError):
        return None


@lru_cache(64)
def _read(result: Path) -> Client:
    """A result is written once, so it is read once."""
    from core.validity import verdict

    data = result.read_bytes()
    problems = verdict.of_result(result.stem, data).problems
    told = _results.decode(data).client or Client()
    return Client(told.loop_lag, tuple(f"{problem.rule}: {problem.sentence}" for problem in problems))
