"""The shape of expert popularity in a layer, for simulators and kernel benches that assume one: the
exponent s of a power law, the r-th most popular expert getting r^-s, or the concentration α of a
symmetric Dirichlet distribution.

Both are those that spread as the layer does: E Σ p² - 1, the squared CV of the experts' shares p.
That is estimated from pairs of different blocks of steps, Σ x_b·x_c over b ≠ c, so that neither
chance nor what repeats within a block counts as popularity. Its interval is the jackknife's over
blocks (Student's t), and that of s and α follows, as each falls or rises with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import msgspec
import numpy as np

from core.stats import bootstrap, estimate
from core.stats.arrays import Floats
from core.stats.estimate import Estimate

MIN_BLOCKS = 8  # with fewer, the jackknife's error is itself unsure
STEEPEST = 8.0  # an exponent above it is one expert for all tokens


class Popularity(msgspec.Struct, frozen=True):
    """One layer. `misfit`: the share of tokens that would have to go to other experts to make it a
    power law."""

    power_law: Estimate
    dirichlet: Estimate
    misfit: float | None = None


def of_layers(counts: Floats) -> list[Popularity]:
    """From the tokens in each of several blocks of steps, [blocks, layers, experts]."""
    return [_of_layer(counts[:, layer]) for layer in range(counts.shape[1])]


def _of_layer(counts: Floats) -> Popularity:
    """`counts` [blocks, experts]."""
    counts = counts[counts.sum(axis=1) > 0]
    blocks, experts = counts.shape
    if blocks < MIN_BLOCKS or experts < 2:
        reason = f"{blocks} blocks of steps, {MIN_BLOCKS} are needed"
        return Popularity(estimate.none(reason), estimate.none(reason))
    value, error = _spread(counts)
    half = bootstrap.t_quantile(blocks - 1) * error
    if value - half <= 0:
        reason = "not told apart from even"
        return Popularity(estimate.none(reason), estimate.none(reason))
    ends = (value - half, value + half)
    law = _mapped(exponent, value, ends, experts)
    misfit = _misfit(counts.sum(axis=0), law.value or 0.0)
    return Popularity(law, _mapped(concentration, value, ends, experts), misfit)


def _spread(counts: Floats) -> tuple[float, float]:
    """E Σ p² - 1 and its standard error, of `counts` [blocks, experts]."""
    experts, sums, tokens = counts.shape[1], counts.sum(axis=0), counts.sum(axis=1)
    alike = float(sums @ sums) - float((counts**2).sum())
    pairs = float(tokens.sum() ** 2 - (tokens**2).sum())
    # without block b, its pairs with all others are gone
    alike_left = alike - 2 * (counts @ sums - (counts**2).sum(axis=1))
    pairs_left = pairs - 2 * tokens * (tokens.sum() - tokens)
    left = experts * alike_left / pairs_left - 1
    n = len(counts)
    error = math.sqrt((n - 1) / n * float(((left - left.mean()) ** 2).sum()))
    return experts * alike / pairs - 1, error


def _mapped(
    to: Callable[[float, int], float], value: float, ends: tuple[float, float], experts: int
) -> Estimate:
    low, high = sorted(to(end, experts) for end in ends)
    return estimate.of(to(value, experts), (low, high))


def exponent(spread: float, experts: int) -> float:
    """The power law whose E Σ p² - 1 that is."""
    table = _spreads(experts)
    return float(np.interp(spread, table, np.linspace(0, STEEPEST, len(table))))


@lru_cache(maxsize=8)
def _spreads(experts: int) -> Floats:
    """Of the exponents from 0 to STEEPEST, at even distances."""
    rows = np.array([shares(s, experts) for s in np.linspace(0, STEEPEST, 1601)])
    return np.asarray(experts * (rows**2).sum(axis=1) - 1)


def shares(s: float, experts: int) -> Floats:
    """The shares of a power law, the most popular first."""
    heights = np.arange(1, experts + 1) ** -s
    return np.asarray(heights / heights.sum())


def concentration(spread: float, experts: int) -> float:
    """The α of Dirichlet(α, …, α) whose shares have that squared CV on average: it is
    (E - 1)/(E α + 1)."""
    return max((experts - 1) / spread - 1, 0.0) / experts


def _misfit(sums: Floats, s: float) -> float:
    own = np.sort(sums / sums.sum())[::-1]
    return float(np.abs(own - shares(s, len(own))).sum() / 2)
