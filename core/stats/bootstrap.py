"""95 % intervals by the bootstrap over blocks of neighbouring steps, or over points.

Neighbouring steps resemble each other, so blocks of n^(1/3) steps or more are drawn instead of
single steps (Künsch 1989). Intervals are expanded percentile intervals (Hesterberg 2015): plain
percentiles are too narrow if there are few blocks, so they are widened by √(B/(B-1)) · t/z. They
are centred on the estimate by subtracting the replicates' mean, which removes the upward bias that
resampling gives to anything that contains a square, such as a CV.
"""

from __future__ import annotations

import math

import numpy as np

from core.stats.arrays import Floats

RESAMPLES = 400
LEVEL = 0.95
Z = 1.959963984540054  # the normal's 97.5 % quantile

Interval = tuple[float, float]


def block_length(steps: int) -> float:
    """Steps of one block: n^(1/3)."""
    return math.cbrt(max(steps, 1))


def lag_one(values: Floats) -> float:
    """Correlation of neighbours in `values` [n], minus the -1/n expected of independent ones; 0 if
    all are equal."""
    left = values - values.mean()
    spread = float(left @ left)
    return float(left[1:] @ left[:-1]) / spread + 1 / len(values) if spread > 0 else 0.0


def weights(blocks: int, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """[resamples, blocks]: how often each block is drawn. Equal arguments give equal draws."""
    draws = np.random.default_rng(seed).multinomial(
        blocks, np.full(blocks, 1 / blocks), size=resamples
    )
    return draws.astype(np.float64)


def interval(estimate: float, replicates: Floats, blocks: int) -> Interval | None:
    """95 % interval of `estimate`, from its replicates [resamples] over `blocks` units; None for
    fewer than two units, or if most replicates are not finite."""
    usable = replicates[np.isfinite(replicates)]
    if blocks < 2 or len(usable) < len(replicates) / 2 or not math.isfinite(estimate):
        return None
    low, high = np.percentile(usable, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    wider, centre = _expansion(blocks), usable.mean()
    return float(estimate + wider * (low - centre)), float(estimate + wider * (high - centre))


def standard_error(replicates: Floats, blocks: int) -> float:
    """Standard error of an estimate, from its replicates; nan for fewer than two units."""
    return float(replicates.std() * math.sqrt(blocks / (blocks - 1))) if blocks > 1 else math.nan


def _expansion(blocks: int) -> float:
    return math.sqrt(blocks / (blocks - 1)) * t_quantile(blocks - 1) / Z


def t_quantile(freedom: int) -> float:
    """Student's 97.5 % quantile without importing scipy: Hill's expansion (CACM 396), exact for 1
    and 2."""
    if freedom == 1:
        return 12.706204736432095
    if freedom == 2:
        return 4.302652729696142
    n, z = float(freedom), Z
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / n**power for power, term in enumerate(terms, 1))
