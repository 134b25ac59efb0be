"""Two backends on the same datasets: paired ratio and difference, with intervals, and how much
repeats differ.

With MIN_DATASETS datasets or more, results hold for datasets like these: intervals are by the
bootstrap over datasets, each at the mean of its repeats, which includes the spread of repeats
(drawing repeats within a drawn dataset too would count it twice). With fewer, if every dataset was
repeated, results hold for these datasets only: intervals are Student's over repeats, with
Welch-Satterthwaite degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from core.stats import bootstrap, estimate
from core.stats.arrays import Floats
from core.stats.bootstrap import Interval
from core.stats.estimate import MIN_DATASETS, Estimate

RESAMPLES = 2_000


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """`ratio`: geometric mean over datasets of other/reference; `difference`: mean of other -
    reference.

    `repeats`: the fewest and the most of any dataset at a backend; `spread`: standard deviation of
    repeats around their dataset's mean, in %, null without repeats; `fixed`: the result holds for
    these datasets only.
    """

    metric: str
    reference: str
    other: str
    n: int
    ratio: Estimate
    difference: Estimate
    repeats: tuple[int, int] = (1, 1)
    spread: float | None = None
    fixed: bool = False

    def in_words(self, name: str) -> str:
        """`all2all TPOT is 18 % higher than baseline's [16, 21]`, or that no difference is seen, if
        the interval of the ratio contains 1."""
        if self.ratio.value is None or self.ratio.interval is None:
            return (
                f"{self.other} {name} and {self.reference}'s are not compared: {self.ratio.reason}"
            )
        percent, low, high = (100 * (r - 1) for r in (self.ratio.value, *self.ratio.interval))
        ends = f"[{low:.1f}, {high:.1f}] %"
        if low <= 0 <= high:
            seen = f"no difference is seen between {self.other} {name} and {self.reference}'s"
            return f"{seen}: {percent:+.1f} % {ends}, {self._of}"
        if percent < 0:
            percent, ends = -percent, f"[{-high:.1f}, {-low:.1f}] %"
        way = "higher" if low > 0 else "lower"
        seen = f"{self.other} {name} is {percent:.1f} % {way} than {self.reference}'s"
        return f"{seen} {ends}, {self._of}"

    @property
    def _of(self) -> str:
        only = "of this dataset only" if self.n == 1 else f"of these {self.n} datasets only"
        about = only if self.fixed else f"n = {self.n} datasets"
        spread = "" if self.spread is None else f"; repeats differ by {self.spread:.2g} % (SD)"
        return f"{about}{repeated(self.repeats)}{spread}"


def repeated(repeats: tuple[int, int]) -> str:
    """` × 3 repeats`, ` × 2–3 repeats`, or nothing if each dataset ran once."""
    fewest, most = repeats
    if most < 2:
        return ""
    return f" × {fewest} repeats" if fewest == most else f" × {fewest}–{most} repeats"


def compare(
    metric: str, reference: str, other: str, values: Sequence[Mapping[str, Sequence[float]]]
) -> Comparison:
    """Compare `values`, first the reference's, then the other's: by dataset, a value per repeat."""
    shared = sorted(values[0].keys() & values[1].keys())
    sides = [[np.array(side[name], dtype=np.float64) for name in shared] for side in values]
    counts = [len(repeats) for side in sides for repeats in side] or [1]
    spread = _spread([r for side in sides for r in side])
    fixed = len(shared) < MIN_DATASETS and bool(shared) and min(counts) > 1
    if reason := _unsupported(sides, fixed):
        ratio = difference = estimate.none(reason)
    else:
        ratio = _exponential(_mean_difference([[np.log(r) for r in side] for side in sides], fixed))
        difference = _mean_difference(sides, fixed)
    return Comparison(
        metric=metric,
        reference=reference,
        other=other,
        n=len(shared),
        ratio=ratio,
        difference=difference,
        repeats=(min(counts), max(counts)),
        spread=spread,
        fixed=fixed,
    )


def _unsupported(sides: list[list[Floats]], fixed: bool) -> str | None:
    if len(sides[0]) < MIN_DATASETS and not fixed:
        few = f"n = {len(sides[0])} datasets run by both: too few to say"
        return f"{few}; {MIN_DATASETS} are needed, or repeats"
    if any((repeats <= 0).any() for side in sides for repeats in side):
        return "a value is not above zero, so there is no ratio"
    return None


def _mean_difference(sides: list[list[Floats]], fixed: bool) -> Estimate:
    """Mean over datasets of the other's mean minus the reference's."""
    gaps = np.array([after.mean() - before.mean() for before, after in zip(*sides, strict=True)])
    value, n = float(gaps.mean()), len(gaps)
    if fixed:
        return estimate.of(value, _students(value, [r for side in sides for r in side], n))
    draws = bootstrap.weights(n, RESAMPLES) / n
    return estimate.of(value, bootstrap.interval(value, draws @ gaps, n))


def _students(value: float, repeats: list[Floats], datasets: int) -> Interval:
    """Student's interval of a mean over `datasets`, of differences of means of `repeats`."""
    parts = np.array([r.var(ddof=1) / len(r) for r in repeats]) / datasets**2
    variance = float(parts.sum())
    freedom = (
        variance**2 / float((parts**2 / [len(r) - 1 for r in repeats]).sum()) if variance else 1.0
    )
    half = bootstrap.t_quantile(max(1, math.floor(freedom + 1e-9))) * math.sqrt(variance)
    return value - half, value + half


def _exponential(of: Estimate) -> Estimate:
    value = None if of.value is None else math.exp(of.value)
    if of.interval is None:
        return Estimate(value, None, of.reason)
    low, high = of.interval
    return Estimate(value, (math.exp(low), math.exp(high)), of.reason)


def _spread(repeats: list[Floats]) -> float | None:
    """Pooled standard deviation of log values around their dataset's mean, in %."""
    logs = [np.log(r) for r in repeats if len(r) > 1 and (r > 0).all()]
    if not logs:
        return None
    freedom = sum(len(r) - 1 for r in logs)
    return 100 * math.sqrt(sum(float(((r - r.mean()) ** 2).sum()) for r in logs) / freedom)
