"""[search]: the highest load that meets a service-level objective, and the load to measure next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Over = Literal["max_concurrency", "request_rate"]
SLO_LIMITS = ("ttft_ms", "tpot_ms", "e2e_ms")
Loads = Mapping[float, bool]
"""Load → whether its point met the objective."""


class Search(msgspec.Struct, frozen=True, kw_only=True):
    """[search]: the highest `over` at which a `share` of the requests meets every limit of `slo`,
    between `low` and `high`, to within `resolution_pct`."""

    over: Over = "max_concurrency"
    slo: dict[str, Annotated[float, Meta(gt=0, le=1e9)]] = {}
    share: Annotated[float, Meta(gt=0, le=1)] = 0.99
    low: Annotated[float, Meta(gt=0, le=1e9)] = 1.0
    high: Annotated[float, Meta(gt=0, le=1e9)] = 256.0
    resolution_pct: Annotated[float, Meta(gt=0, le=100)] = 5.0

    @property
    def key(self) -> str:
        return f"experiment.{self.over}"

    @property
    def is_whole(self) -> bool:
        return self.over == "max_concurrency"


def bracket(points: Loads) -> tuple[float | None, float | None]:
    """The highest load that met it below the lowest that did not, and that lowest one."""
    failing = min((load for load, met in points.items() if not met), default=None)
    meeting = [load for load, met in points.items() if met and (failing is None or load < failing)]
    return max(meeting, default=None), failing


def next_load(asked: Search, points: Loads, begin: float | None = None) -> float | None:
    """Doubled from `begin`, or `low`, until the objective is missed, then halved between the two,
    by ratio; None where that is close enough, or a bound ends it. Saturated points are slow, so it
    comes from below."""
    if not points:
        return _rounded(asked, begin or asked.low)
    meeting, failing = bracket(points)
    if meeting is None:
        lower = _rounded(asked, max(asked.low, min(points) / 2))
        return lower if lower < min(points) else None
    if failing is None:
        return None if meeting >= asked.high else _rounded(asked, min(2 * meeting, asked.high))
    middle = _rounded(asked, math.sqrt(meeting * failing))
    is_close = failing <= meeting * (1 + asked.resolution_pct / 100)
    return None if is_close or not meeting < middle < failing else middle


def begin_again(asked: Search, points: Loads) -> float:
    """Where the next start begins: at a load that the doubling comes by, at half of what met the
    objective or below. Its own search is the same as from `low`, so that starts are independent."""
    meeting, load = bracket(points)[0] or 0.0, asked.low
    while 4 * load <= meeting:
        load *= 2
    return load


def most_loads(asked: Search) -> int:
    """Loads that are tried at most: doublings from `low` to `high`, then halvings of a factor of
    two until both ends are within `resolution_pct`."""
    doublings = math.ceil(math.log2(max(1.0, asked.high / asked.low)))
    halvings = math.ceil(math.log2(math.log(2) / math.log1p(asked.resolution_pct / 100)))
    return 1 + doublings + max(0, halvings)


def allowed_misses(share: float, requests: int) -> int:
    """Requests that may miss the objective, so that the share is still met."""
    return math.floor((1 - share) * requests + 1e-9)


def _rounded(asked: Search, load: float) -> float:
    """A whole number of requests in flight; a rate to four digits."""
    return float(max(1, round(load))) if asked.is_whole else float(f"{load:.4g}")
