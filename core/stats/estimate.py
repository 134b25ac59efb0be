"""A number with its uncertainty: a value with its 95 % interval, or null with the reason."""

from __future__ import annotations

import math

import msgspec

from core.stats.bootstrap import Interval
from core.stats.written import written

MIN_DATASETS = 8  # with fewer, intervals and tests are unreliable: no effect is reported


class Estimate(msgspec.Struct, frozen=True):
    """A value with its 95 % `interval`, or null with the `reason`: then it shows nothing."""

    value: float | None
    interval: Interval | None = None
    reason: str | None = None

    @property
    def excludes_zero(self) -> bool:
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)

    def scaled(self, factor: float) -> Estimate:
        if self.value is None:
            return self
        if self.interval is None:
            return Estimate(self.value * factor)
        low, high = sorted(end * factor for end in self.interval)
        return Estimate(self.value * factor, (low, high))

    def shown(self, form: str = ".3g") -> str:
        """`0.12 [0.05, 0.2]`, or a dash."""
        if self.value is None:
            return "–"
        value = written(self.value, form)
        if self.interval is None:
            return value
        low, high = (written(end, form) for end in self.interval)
        return f"{value} [{low}, {high}]"


def none(reason: str) -> Estimate:
    """An estimate that n, or the data, does not support."""
    return Estimate(None, None, reason)


def of(value: float, interval: Interval | None = None) -> Estimate:
    """An estimate; null if the value is not finite."""
    return Estimate(value, interval) if math.isfinite(value) else none("not a number")
