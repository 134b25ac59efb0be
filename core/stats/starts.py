"""A metric of two backends, by server start: the means of starts, and what they differ by.

A server start is the unit of replication. Restarting a server moves its times (elsewhere by an SD
of about 1.3 %), by the same factor for every run of that start, so runs and datasets of one start
are no replicates of it. Where starts ran the same datasets, their means are compared by Student's
two-sample test (pooled variance, as starts of a server should vary alike). Where the datasets were
shared out over the starts, start k of one backend is paired with start k of the other, which ran
the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from core.stats.arrays import Floats
from core.stats.bootstrap import Interval

Side = Mapping[int, Mapping[str, Sequence[float]]]
"""One backend: start → dataset → a value a repeat."""
ONE_START = "one start each: how much a restart moves it is not known (elsewhere about 1.3 %)"


@dataclass(frozen=True, slots=True)
class Means:
    """`before`, `after` [starts]: a mean over datasets of each start of the reference and of the
    other. `paired`: start k of both ran the same share of the `datasets`."""

    before: Floats
    after: Floats
    paired: bool
    datasets: int

    @property
    def value(self) -> float:
        return float(self.after.mean() - self.before.mean())

    @property
    def are_replicated(self) -> bool:
        return min(len(self.before), len(self.after)) > 1

    @property
    def freedom(self) -> int:
        """Degrees of freedom of `spread`."""
        return len(self.before) - 1 if self.paired else len(self.before) + len(self.after) - 2

    @property
    def spread(self) -> float:
        """SD of a start's mean; where starts are paired, of a pair's difference."""
        if self.paired:
            return float((self.after - self.before).std(ddof=1))
        with np.errstate(over="ignore"):
            squares = [float(((s - s.mean()) ** 2).sum()) for s in (self.before, self.after)]
        return math.sqrt(sum(squares) / self.freedom)

    @property
    def standard_error(self) -> float:
        if self.paired:
            return self.spread / math.sqrt(len(self.before))
        return self.spread * math.sqrt(1 / len(self.before) + 1 / len(self.after))

    def interval(self, level: float) -> Interval:
        """Student's interval of the difference, of two starts or more."""
        from scipy import special

        half = float(special.stdtrit(self.freedom, (1 + level) / 2)) * self.standard_error
        return self.value - half, self.value + half

    def p(self) -> float:
        """Two-sided, that the two do not differ."""
        from scipy import special

        if not self.standard_error:
            return float(not self.value)
        return float(2 * special.stdtr(self.freedom, -abs(self.value) / self.standard_error))

    def p_larger(self, margin: float) -> float:
        """That the true difference is `margin` at most, either way: the chance of one as far out
        where it is largest, at the margin. Never below `p`."""
        return min(1.0, self._tail(abs(self.value) - margin) + self._tail(abs(self.value) + margin))

    def p_equivalent(self, margin: float) -> float:
        """That the true difference is `margin` or more, either way: two one-sided tests."""
        return self._tail(margin - abs(self.value))

    def _tail(self, distance: float) -> float:
        from scipy import special

        if not self.standard_error:
            return 0.0 if distance > 0 else 1.0
        return float(special.stdtr(self.freedom, -distance / self.standard_error))


def shared(before: Side, after: Side) -> set[str]:
    """The datasets that both backends ran."""
    return _ran(before) & _ran(after)


def means(before: Side, after: Side) -> Means | None:
    """The means of the starts, over as many of the shared datasets as can be compared; None where
    there are none.

    Starts of equal datasets are taken where these are half of the shared ones or more, so that a
    failed run costs its dataset and not the design.
    """
    both = shared(before, after)
    everywhere = both.intersection(*(set(own) for own in (*before.values(), *after.values())))
    parts = {
        start: own
        for start in sorted(before.keys() & after.keys())
        if (own := both & before[start].keys() & after[start].keys())
    }
    if everywhere and (2 * len(everywhere) >= len(both) or len(parts) < 2):
        kept = sorted(everywhere)
        first, second = (
            np.array([_mean(own, kept) for own in side.values()]) for side in (before, after)
        )
        return Means(first, second, paired=False, datasets=len(kept))
    if not parts:
        return None
    first, second = (
        np.array([_mean(side[start], sorted(own)) for start, own in parts.items()])
        for side in (before, after)
    )
    return Means(first, second, paired=True, datasets=len(set().union(*parts.values())))


def _ran(side: Side) -> set[str]:
    return {dataset for own in side.values() for dataset in own}


def _mean(own: Mapping[str, Sequence[float]], datasets: Sequence[str]) -> float:
    """Mean over datasets, each at the mean of its repeats."""
    return float(np.mean([np.mean(own[dataset]) for dataset in datasets]))
