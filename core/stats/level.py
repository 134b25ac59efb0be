"""A metric of one backend: its mean, with an interval that rests on server starts.

Starts are averaged by their logarithms, as a restart moves times by a factor (core.stats.starts):
an interval of times then holds nothing below zero. Where a value is not above zero, plainly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from core.stats import estimate
from core.stats.arrays import Floats
from core.stats.estimate import Estimate
from core.stats.starts import Side

LEVEL = 0.95
FAR = 100.0  # in logarithms: more than any figure spans
ONE = "one start: how much a restart moves it is not known"


class Level(NamedTuple):
    """`estimate`: geometric mean of starts, each at its mean over `datasets`. Where starts `share`
    the datasets out, what datasets differ by widens the interval too."""

    estimate: Estimate
    starts: int
    datasets: int
    share: bool = False

    @property
    def half_width_pct(self) -> float | None:
        """How far the interval reaches from the value, in % of it, to its farther end."""
        value, interval = self.estimate.value, self.estimate.interval
        if not value or interval is None:
            return None
        return 100 * max(interval[1] - value, value - interval[0]) / abs(value)


def of_side(side: Side, level: float = LEVEL) -> Level:
    """Student's interval over the means of starts; of the datasets that every start ran, or where
    those are few, of each start's own."""
    if not side:
        return Level(estimate.none("nothing was measured"), 0, 0)
    everywhere = set.intersection(*(set(own) for own in side.values()))
    ran = {dataset for own in side.values() for dataset in own}
    shared = 2 * len(everywhere) < len(ran)
    means = np.array(
        [
            np.mean([np.mean(run) for name, run in own.items() if shared or name in everywhere])
            for own in side.values()
        ]
    )
    datasets = len(ran) if shared else len(everywhere)
    return Level(_estimate(means, level), len(means), datasets, shared)


def _estimate(means: Floats, level: float) -> Estimate:
    is_positive = bool((means > 0).all())
    scaled = np.log(means) if is_positive else means
    back: Callable[[float], float] = math.exp if is_positive else float
    value = float(scaled.mean())
    if len(means) < 2:
        return Estimate(back(value), None, ONE)
    error = float(scaled.std(ddof=1)) / math.sqrt(len(means))
    half = _quantile(len(means) - 1, level) * error
    if is_positive:
        half = min(half, FAR)
    return Estimate(back(value), (back(value - half), back(value + half)))


def _quantile(freedom: int, level: float) -> float:
    from scipy import special

    return float(special.stdtrit(freedom, (1 + level) / 2))
