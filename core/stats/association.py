"""How one metric varies with another over datasets: rank and linear correlation, slope, and what
length explains.

- Spearman and Pearson: intervals by the bootstrap over points, on Fisher's scale (atanh). The
  intervals of Pearson and of `explained` are too narrow if the noise has heavy tails: rely on
  Spearman and the slope.
- slope: Theil-Sen, the median over pairs, with Sen's (1968) interval.
- explained: Pearson's r², the part of the variance that a straight line explains.
- partial: Spearman's correlation of the residuals of both, after a linear fit of their ranks on the
  covariates' ranks.
- distance: the distance correlation of the ranks.
- p: that x and y are unrelated, and which tests say so: `core/stats/dependence.py`.
- influential: points whose Cook's distance is above 4/n. The fit is shown without them too.
- Holm's correction is over all tests that are reported side by side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from core.stats import bootstrap, dependence, estimate
from core.stats.arrays import Bools, Floats, Ints
from core.stats.bootstrap import Interval
from core.stats.dependence import Dependence
from core.stats.estimate import MIN_DATASETS, Estimate

ALPHA = 0.05


class Association(msgspec.Struct, frozen=True, kw_only=True):
    """How y varies with x over `n` points. `slope`: in y's unit per unit of x; `p`: that they are
    unrelated, `p_holm` after Holm's correction; `tests`: the three that `p` is the least of."""

    n: int
    spearman: Estimate
    pearson: Estimate
    slope: Estimate
    explained: Estimate
    partial: Estimate
    distance: float | None = None
    tests: Dependence | None = None
    p_holm: float | None = None

    @property
    def p(self) -> float | None:
        return None if self.tests is None else self.tests.p

    @property
    def is_seen(self) -> bool:
        """Whether it is rejected, after the correction if there is one, that they are unrelated."""
        p = self.p if self.p_holm is None else self.p_holm
        return p is not None and p < ALPHA

    @property
    def is_monotone(self) -> bool:
        """Whether y is seen to rise, or fall, with x: by as much of a correction as `p` had."""
        if self.tests is None or not self.is_seen:
            return False
        factor = self.p_holm / self.tests.p if self.p_holm else 1.0
        return self.tests.monotone * factor < ALPHA

    @property
    def bends(self) -> bool:
        """Whether y is seen to go with x, but not to rise or fall with it."""
        return self.is_seen and not self.is_monotone


def associate(
    x: Floats, y: Floats, covariates: Sequence[Floats] = (), seed: int = 0
) -> Association:
    """The association of x and y, each [n]. The partial correlation holds `covariates`, each [n],
    fixed."""
    if reason := _unsupported(x, y):
        null = estimate.none(reason)
        return Association(
            n=len(x), spearman=null, pearson=null, slope=null, explained=null, partial=null
        )
    from scipy import stats

    drawn = np.random.default_rng(seed).integers(0, len(x), (bootstrap.RESAMPLES, len(x)))
    ranks = stats.rankdata
    pearson = _correlation(x, y, pearson_rows(x[drawn], y[drawn]))
    spearman = _correlation(
        ranks(x), ranks(y), pearson_rows(ranks(x[drawn], axis=-1), ranks(y[drawn], axis=-1))
    )
    return Association(
        n=len(x),
        spearman=spearman,
        pearson=pearson,
        slope=slope(x, y),
        explained=_squared(pearson),
        partial=_partial(ranks(x), ranks(y), [ranks(c) for c in covariates], drawn),
        distance=dependence.distance_correlation(ranks(x), ranks(y)),
        tests=dependence.between(x, y, seed),
    )


def slope(x: Floats, y: Floats) -> Estimate:
    """Theil-Sen's, with Sen's interval."""
    from scipy import stats

    found = stats.theilslopes(y, x, alpha=bootstrap.LEVEL)
    return estimate.of(float(found.slope), (float(found.low_slope), float(found.high_slope)))


def folded(x: Floats) -> Floats:
    """How far each point lies from the middle, by rank; 1 at the ends of the middle 80 %."""
    from scipy import stats

    ranks = stats.rankdata(x)
    return np.asarray(abs(ranks - ranks.mean()) / (0.4 * len(x)))


def p_larger(x: Floats, y: Floats, margin: float) -> float:
    """That the true slope is `margin` at most, either way, by Kendall's test, whose inversion is
    Sen's interval: the sum of both tails, so never below the p that there is no slope."""
    rises, falls = (_p_above(x, side * y, margin) for side in (1, -1))
    return min(1.0, min(rises, falls) + min(_p_above(x, side * y, -margin) for side in (1, -1)))


def p_equivalent(x: Floats, y: Floats, margin: float) -> float:
    """That the true slope is `margin` or more, either way: two one-sided tests."""
    return max(_p_above(x, side * y, -margin) for side in (1, -1))


def _p_above(x: Floats, y: Floats, slope: float) -> float:
    """That the true slope is `slope` at most: by Kendall's sum over pairs, of x and of what a line
    of this slope leaves of y, with the variance of Sen's interval."""
    from scipy import special

    left, n = y - slope * x, len(x)
    agree = float((np.sign(x[:, None] - x) * np.sign(left[:, None] - left)).sum()) / 2
    ties = [np.unique(v, return_counts=True)[1] for v in (x, left)]
    variance = n * (n - 1) * (2 * n + 5) - sum((t * (t - 1) * (2 * t + 5)).sum() for t in ties)
    return float(special.ndtr(-agree / math.sqrt(variance / 18))) if variance > 0 else 1.0


def _unsupported(x: Floats, y: Floats) -> str | None:
    if len(x) < MIN_DATASETS:
        return f"n = {len(x)}: too few to say; {MIN_DATASETS} are needed"
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return "every point has the same value on one axis"
    return None


def pearson_rows(x: Floats, y: Floats) -> Floats:
    """Pearson's r over the last axis; nan where one of the two is constant."""
    x, y = x - x.mean(axis=-1, keepdims=True), y - y.mean(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (x * y).sum(axis=-1) / np.sqrt((x * x).sum(axis=-1) * (y * y).sum(axis=-1))
    return np.asarray(np.clip(r, -1, 1))


def _correlation(x: Floats, y: Floats, replicates: Floats) -> Estimate:
    value = float(pearson_rows(x, y))
    edge = 1 - 1e-12
    ends = bootstrap.interval(
        float(np.arctanh(np.clip(value, -edge, edge))),
        np.arctanh(np.clip(replicates, -edge, edge)),
        len(x),
    )
    if ends is None:
        return estimate.of(value)
    return estimate.of(value, (float(np.tanh(ends[0])), float(np.tanh(ends[1]))))


def _squared(r: Estimate) -> Estimate:
    if r.value is None or r.interval is None:
        return r
    low, high = r.interval
    ends: Interval = (0.0 if low <= 0 <= high else min(low**2, high**2), max(low**2, high**2))
    return Estimate(r.value**2, ends)


def _partial(x: Floats, y: Floats, covariates: Sequence[Floats], drawn: Ints) -> Estimate:
    varying = [c for c in covariates if np.ptp(c) > 0]
    if not varying:
        return estimate.none("the covariates are the same for every point")
    if len(x) < MIN_DATASETS + len(varying):
        return estimate.none(f"n = {len(x)}: too few points for {len(varying)} covariates")
    given = np.column_stack([np.ones(len(x)), *varying])
    left_x, left_y = _residuals(x, given), _residuals(y, given)
    if left_x.std() < 1e-9 * x.std() or left_y.std() < 1e-9 * y.std():
        return estimate.none("the covariates determine one of the two")
    return _correlation(
        left_x,
        left_y,
        pearson_rows(_residuals(x[drawn], given[drawn]), _residuals(y[drawn], given[drawn])),
    )


def _residuals(values: Floats, given: Floats) -> Floats:
    """values [..., n] less their least-squares fit on given [..., n, k]."""
    fit = given @ (np.linalg.pinv(given, rcond=1e-10) @ values[..., None])
    return np.asarray(values - fit[..., 0])


def influential(x: Floats, y: Floats) -> Bools:
    """The points [n] that move a straight line most: those whose Cook's distance is above 4/n."""
    n = len(x)
    if n < 3 or np.ptp(x) == 0:
        return np.zeros(n, np.bool_)
    given = np.column_stack([np.ones(n), x])
    left = _residuals(y, given)
    leverage = np.einsum("ij,ji->i", given, np.linalg.pinv(given))
    variance = float(left @ left) / (n - 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = left**2 / (2 * variance) * leverage / (1 - leverage) ** 2
    return np.asarray(np.nan_to_num(distance) > 4 / n)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm's (1979) adjusted p values; None stays None and does not count as a test."""
    known = sorted((p, place) for place, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    running = 0.0
    for done, (p, place) in enumerate(known):
        running = max(running, min(1.0, p * (len(known) - done)))
        adjusted[place] = running
    return adjusted
