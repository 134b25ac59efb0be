"""A number that knows how sure it is: a value with its 95 % interval, or null with the reason."""

from __future__ import annotations

import math

import msgspec

from core.stats.bootstrap import Interval

MIN_DATASETS = (
    8  # below, nothing is said of an effect: too few for an interval or a test to be relied on
)


class Estimate(msgspec.Struct, frozen=True):
    """`interval`: 95 %. `reason`: why there is no value (then nothing may be read into it)."""

    value: float | None
    interval: Interval | None = None
    reason: str | None = None

    @property
    def excludes_zero(self) -> bool:
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)

    def scaled(self, factor: float) -> Estimate:
        if self.value is None:
            return self
        ends = self.interval and sorted((self.interval[0] * factor, self.interval[1] * factor))
        return Estimate(self.value * factor, (ends[0], ends[1]) if ends else None)

    def shown(self, form: str = ".3g") -> str:
        """`0.12 [0.05, 0.2]`, or a dash."""
        if self.value is None:
            return "–"
        return f"{self.value:{form}}" + (
            f" [{self.interval[0]:{form}}, {self.interval[1]:{form}}]" if self.interval else ""
        )


def none(reason: str) -> Estimate:
    """What n, or the data, does not support."""
    return Estimate(None, None, reason)


def of(value: float, interval: Interval | None = None) -> Estimate:
    """An estimate; null where it is not a number."""
    return Estimate(value, interval) if math.isfinite(value) else none("not a number")
