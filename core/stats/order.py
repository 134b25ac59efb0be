"""Intervals of quantiles from order statistics: they assume no distribution, only that values are
independent (David & Nagaraja, Order Statistics, §7.1)."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from core.stats.arrays import Floats

MISS = 0.05  # of both ends together: 95 % intervals
End = float | None


def interval(values: ArrayLike, quantile: float) -> tuple[End, End]:
    """The 95 % interval of a `quantile` in (0, 1); an end is None where too few values lie beyond
    it (a p99 has an upper end from 299 values on). With one end, the other has all of the 5 %."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    if not len(ordered):
        return None, None
    low, high = places(len(ordered), quantile)
    return (
        None if low is None else float(ordered[low]),
        None if high is None else float(ordered[high]),
    )


@lru_cache(maxsize=256)
def places(n: int, quantile: float) -> tuple[int | None, int | None]:
    """Places from 0 of the two ends among `n` values in order.

    Each end misses in 2.5 % where n allows it. Where even the outermost value misses in more, but
    not in 5 %, the other end gets what is left; where it misses in more than 5 %, there is no such
    end.
    """
    if quantile < 0.5:
        low, high = places(n, 1 - quantile)
        return _mirrored(high, n), _mirrored(low, n)
    below, above = _binomial(n, quantile), _binomial(n, 1 - quantile)
    over = _end(above, max(MISS / 2, float(above[0])))
    if over is not None:
        under = _end(below, min(MISS / 2, MISS - float(above[over])))
        if under is not None:
            return under, n - 1 - over
    return _end(below, MISS), None


def _mirrored(place: int | None, n: int) -> int | None:
    return None if place is None else n - 1 - place


def _end(chances: Floats, allowed: float) -> int | None:
    """The innermost place whose chance to miss is at most `allowed`; None if there is none."""
    inside = int(np.searchsorted(chances, min(allowed, MISS), side="right")) - 1
    return inside if inside >= 0 else None


def _binomial(n: int, chance: float) -> Floats:
    """[n]: the chance of at most k successes of `n`, k from 0. It is the chance that the value at
    place k lies beyond a quantile that `chance` of all values do not reach."""
    k = np.arange(n)
    ways = np.array([math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in k])
    chances = np.exp(ways + k * math.log(chance) + (n - k) * math.log1p(-chance))
    return np.asarray(chances.cumsum())
