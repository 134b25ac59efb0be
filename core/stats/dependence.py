"""Whether y depends on x at all: three statistics of the ranks, by permutation, corrected for being
three.

- monotone: Spearman's correlation, which sees what rises or falls.
- bend: the correlation of y's ranks with the square of x's centred ranks (less its line), which
  sees a U or its reverse.
- distance: the distance covariance (Székely, Rizzo & Bakirov 2007), 0 only where x and y are
  unrelated: it sees steps and waves too. Alone it misses a U among few points: its weight on it is
  a quarter of that on a line.

All three test one hypothesis, that x and y are unrelated. The p of each is the share of orders of
y in which any of the three is as unlikely as it is (Westfall & Young 1993), so the least of them is
the p of that hypothesis, whatever the number of points and however the three go together.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np

from core.stats.arrays import Floats

PERMUTATIONS, FEWER = 9_999, 1_999
MANY = 200  # points: with more, fewer permutations
AT_ONCE = 1 << 21  # numbers


class Dependence(msgspec.Struct, frozen=True, kw_only=True):
    """p of each test, corrected for the others; `p`: that x and y are unrelated."""

    monotone: float
    bend: float
    distance: float

    @property
    def p(self) -> float:
        return min(self.monotone, self.bend, self.distance)


def between(x: Floats, y: Floats, seed: int = 0) -> Dependence:
    """Of x and y, each [n], by shuffling y."""
    return corrected(shuffled(x, y, seed))


def shuffled(x: Floats, y: Floats, seed: int = 0) -> Floats:
    """The three statistics [3, 1 + shuffles], of y as it is, then of y shuffled."""
    from scipy import stats

    order = np.argsort(x, kind="stable")
    one, other = stats.rankdata(x)[order], stats.rankdata(y)[order]
    rng, n = np.random.default_rng(seed), len(x)
    shuffles = PERMUTATIONS if n <= MANY else FEWER
    parts = [_statistics(one, other[:, None])]
    few = max(1, AT_ONCE // n)
    for done in range(0, shuffles, few):
        count = min(few, shuffles - done)
        parts.append(_statistics(one, rng.permuted(np.tile(other[:, None], count), axis=0)))
    return np.concatenate(parts, axis=1)


def _statistics(x: Floats, y: Floats) -> Floats:
    """[3, m] of ascending ranks x [n] and m orders of ranks y [n, m]; rounded, so that equal orders
    have equal figures."""
    line = x - x.mean()
    bend = line**2 - (line**2).mean()
    bend -= line * float(bend @ line) / float(line @ line)
    centred = y - y.mean(axis=0)
    found = np.array([abs(line @ centred), abs(bend @ centred), _distances(x, y)])
    scale = np.array([abs(line).sum(), abs(bend).sum() or 1.0, len(x) ** 2])
    return np.asarray(np.round(found / scale[:, None] / len(x), 12))


def _distances(x: Floats, y: Floats) -> Floats:
    """[m]: half the sum over pairs of the product of distances, x's centred: as those sum to 0 in
    each row, y's need not be."""
    weights = centred_distances(x)
    return np.asarray(sum(np.diagonal(weights, d) @ abs(y[d:] - y[:-d]) for d in range(1, len(x))))


def corrected(found: Floats) -> Dependence:
    """From the statistics [3, 1 + shuffles], the first of which are those seen."""
    from scipy import stats

    count = found.shape[1]
    shares = stats.rankdata(-found, method="max", axis=1) / count  # as high or higher
    least = shares.min(axis=0)
    monotone, bend, distance = (float((least <= own).mean()) for own in shares[:, 0])
    return Dependence(monotone=monotone, bend=bend, distance=distance)


def distance_correlation(x: Floats, y: Floats) -> float:
    """√(dCov²(x, y) / √(dCov²(x, x) dCov²(y, y))), each the mean product of centred distances."""
    a, b = centred_distances(x), centred_distances(y)
    scale = math.sqrt(float((a * a).mean()) * float((b * b).mean()))
    return math.sqrt(max(float((a * b).mean()), 0.0) / scale) if scale > 0 else 0.0


def centred_distances(values: Floats) -> Floats:
    """[n, n]: |v_i - v_j|, less the means of row and column, plus that of all."""
    gaps = abs(values[:, None] - values)
    mean = gaps.mean(axis=0)
    return np.asarray(gaps - mean - mean[:, None] + mean.mean())
