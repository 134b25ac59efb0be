"""How one metric varies with another over datasets: rank and linear correlation, slope, and what
length explains.

- Spearman and Pearson: intervals by the bootstrap over points, on Fisher's scale (atanh);
  Spearman's p by permutation, which sees what rises or falls. The intervals of Pearson and of
  `explained` are too narrow if the noise has heavy tails: rely on Spearman and the slope.
- slope: Theil-Sen, the median over pairs, with Sen's (1968) interval.
- explained: Pearson's r², the part of the variance that a straight line explains.
- partial: Spearman's correlation of the residuals of both, after a linear fit of their ranks on the
  covariates' ranks.
- distance: the distance correlation (Székely, Rizzo & Bakirov 2007) of the ranks, 0 only where they
  are unrelated; its p by permutation sees what bends too, such as a U.
- influential: points whose Cook's distance is above 4/n. The fit is shown without them too.
- Holm's correction is over all tests that are reported side by side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from core.stats import bootstrap, estimate
from core.stats.arrays import Bools, Floats, Ints
from core.stats.bootstrap import Interval
from core.stats.estimate import MIN_DATASETS, Estimate

PERMUTATIONS, DISTANCE_PERMUTATIONS = 9_999, 1_999
AT_ONCE = 1 << 21  # numbers
ALPHA = 0.05


class Association(msgspec.Struct, frozen=True, kw_only=True):
    """How y varies with x over `n` points. `slope`: in y's unit per unit of x; `p` (Spearman's) is
    two-sided; `p_distance` is the distance correlation's; `…_holm`: after Holm's correction."""

    n: int
    spearman: Estimate
    pearson: Estimate
    slope: Estimate
    explained: Estimate
    partial: Estimate
    p: float | None = None
    p_holm: float | None = None
    distance: float | None = None
    p_distance: float | None = None
    p_distance_holm: float | None = None

    @property
    def is_seen(self) -> bool:
        """Whether a test, corrected if there are several, rejects that x and y are unrelated."""
        p = self.p_distance if self.p_distance_holm is None else self.p_distance_holm
        return self.is_monotone or (p is not None and p < ALPHA)

    @property
    def is_monotone(self) -> bool:
        """Whether y is seen to rise, or fall, with x."""
        p = self.p if self.p_holm is None else self.p_holm
        return p is not None and p < ALPHA


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
    monotone, bent = p_values(x, y, seed)
    slope = stats.theilslopes(y, x, alpha=bootstrap.LEVEL)
    pearson = _correlation(x, y, pearson_rows(x[drawn], y[drawn]))
    spearman = _correlation(
        ranks(x), ranks(y), pearson_rows(ranks(x[drawn], axis=-1), ranks(y[drawn], axis=-1))
    )
    return Association(
        n=len(x),
        spearman=spearman,
        pearson=pearson,
        slope=estimate.of(float(slope.slope), (float(slope.low_slope), float(slope.high_slope))),
        explained=_squared(pearson),
        partial=_partial(ranks(x), ranks(y), [ranks(c) for c in covariates], drawn),
        p=monotone,
        distance=distance_correlation(ranks(x), ranks(y)),
        p_distance=bent,
    )


def p_values(x: Floats, y: Floats, seed: int = 0) -> tuple[float, float]:
    """p of Spearman's correlation, and of the distance correlation of the ranks."""
    from scipy import stats

    one, other = stats.rankdata(x), stats.rankdata(y)
    return _permutation_p(one, other, seed), _distance_p(one, other, seed)


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


def _permutation_p(x: Floats, y: Floats, seed: int) -> float:
    """Two-sided p of the correlation of x and y, by shuffling y (Phipson & Smyth's (b + 1)/(m +
    1))."""
    shuffled = np.random.default_rng(seed).permuted(np.tile(y, (PERMUTATIONS, 1)), axis=1)
    seen = abs(float(pearson_rows(x, y)))
    return float((1 + (abs(pearson_rows(x, shuffled)) >= seen - 1e-12).sum()) / (PERMUTATIONS + 1))


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


def distance_correlation(x: Floats, y: Floats) -> float:
    """√(dCov²(x, y) / √(dCov²(x, x) dCov²(y, y))), each the mean product of centred distances."""
    a, b = _centred_distances(x), _centred_distances(y)
    scale = math.sqrt(float((a * a).mean()) * float((b * b).mean()))
    return math.sqrt(max(float((a * b).mean()), 0.0) / scale) if scale > 0 else 0.0


def _centred_distances(values: Floats) -> Floats:
    """[n, n]: |v_i - v_j|, less the means of row and column, plus that of all."""
    gaps = abs(values[:, None] - values)
    mean = gaps.mean(axis=0)
    return np.asarray(gaps - mean - mean[:, None] + mean.mean())


def _distance_p(x: Floats, y: Floats, seed: int) -> float:
    """p of the distance correlation, by shuffling y."""
    a, b, rng = _centred_distances(x), _centred_distances(y), np.random.default_rng(seed)
    seen, n, reached, done = float((a * b).sum()), len(x), 0, 0
    few = max(1, AT_ONCE // n**2)
    while done < DISTANCE_PERMUTATIONS:
        count = min(few, DISTANCE_PERMUTATIONS - done)
        order = rng.permuted(np.tile(np.arange(n), (count, 1)), axis=1)
        shuffled = b[order[:, :, None], order[:, None, :]].reshape(count, -1)
        reached += int((shuffled @ a.ravel() >= seen - 1e-9 * abs(seen)).sum())
        done += count
    return (reached + 1) / (DISTANCE_PERMUTATIONS + 1)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm's (1979) adjusted p values; None stays None and does not count as a test."""
    known = sorted((p, place) for place, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    running = 0.0
    for done, (p, place) in enumerate(known):
        running = max(running, min(1.0, p * (len(known) - done)))
        adjusted[place] = running
    return adjusted
