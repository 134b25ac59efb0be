"""What an ended run's result says of its load client: how late it was, and whether it limited the figures."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import msgspec
from msgspec import Struct


class Lag(Struct, frozen=True):
    p99_ms: float | None = None


class Client(Struct, frozen=True):
    """`loop_lag`: how late the client's event loop was. `warnings`: why the figures may not be the server's."""

    loop_lag: Lag = Lag()
    warnings: tuple[str, ...] = ()


class Result(Struct, frozen=True):
    client: Client | None = None


_results = msgspec.json.Decoder(Result)


def client(result: Path) -> Client | None:
    """The client of one result file; None where it says nothing of it."""
    try:
        return _read(result.resolve()).client
    except (OSError, msgspec.DecodeError):
        return None


@lru_cache(64)
def _read(result: Path) -> Result:
    """A result is written once, so it is read once."""
    return _results.decode(result.read_bytes())
