"""Power of Student's tests on the means of server starts, and the starts that they need."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from core.stats.arrays import Floats

ALPHA = 0.05
TARGET = 0.8
POINTS = 2_000
MOST = 1_000  # starts: more than anyone makes


def of_difference(effect: float, spread: float, starts: int, *, paired: bool = False) -> float:
    """Power of the two-sided test at 5 %, `starts` of each backend, to find a true `effect`.
    `spread`: SD of a start's mean, or where starts are `paired` of a pair's difference."""
    freedom, error = _design(spread, starts, paired)
    return _above(effect / error, freedom, ALPHA / 2) + _above(-effect / error, freedom, ALPHA / 2)


def of_verdict(
    effect: float,
    margin: float,
    spread: float,
    starts: int,
    *,
    paired: bool = False,
    alpha: float = ALPHA,
) -> float:
    """Power to place a true `effect` on its side of `margin`: larger, or by two one-sided tests
    equivalent."""
    freedom, error = _design(spread, starts, paired)
    if abs(effect) > margin:
        return _larger(abs(effect) / error, margin / error, freedom, alpha)
    gaps = ((margin - abs(effect)) / error, (margin + abs(effect)) / error)
    return max(0.0, sum(_above(gap, freedom, alpha) for gap in gaps) - 1)


def _larger(shift: float, margin: float, freedom: int, alpha: float) -> float:
    """The chance that a difference, true at `shift`, is called larger than `margin`; both in its
    standard error. For each value of the estimated error, the least difference that is called so
    is found by halving: between margin + t(1 - alpha) and margin + t(1 - alpha / 2) errors."""
    from scipy import special

    errors = _deviations(freedom)
    low, high = (float(special.stdtrit(freedom, 1 - a)) * errors for a in (alpha, alpha / 2))
    for _ in range(12):
        middle = (low + high) / 2
        tails = (special.stdtr(freedom, -x / errors) for x in (middle, middle + 2 * margin))
        is_enough = sum(tails) < alpha
        low, high = np.where(is_enough, low, middle), np.where(is_enough, middle, high)
    least = margin + high
    return float((special.ndtr(shift - least) + special.ndtr(-shift - least)).mean())


def starts_for_difference(effect: float, spread: float, *, paired: bool = False) -> int | None:
    """The fewest starts of each backend with 80 % power to find `effect`; None above MOST."""
    return _fewest(lambda starts: of_difference(effect, spread, starts, paired=paired))


def starts_for_verdict(
    effect: float,
    margin: float,
    spread: float,
    *,
    paired: bool = False,
    alpha: float = ALPHA,
) -> int | None:
    """The fewest starts of each backend with 80 % power for a verdict; None above MOST."""
    return _fewest(
        lambda starts: of_verdict(effect, margin, spread, starts, paired=paired, alpha=alpha)
    )


def _fewest(power: Callable[[int], float]) -> int | None:
    """Power rises with starts, so halving finds the fewest."""
    if power(MOST) < TARGET:
        return None
    low, high = 1, MOST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= TARGET else (middle, high)
    return high


def _design(spread: float, starts: int, paired: bool) -> tuple[int, float]:
    """Degrees of freedom, and the standard error of the difference."""
    freedom = starts - 1 if paired else 2 * (starts - 1)
    return freedom, max(spread, 1e-12) * math.sqrt((1 if paired else 2) / starts)


def _above(shift: float, freedom: int, alpha: float) -> float:
    """The chance that a noncentral t exceeds the quantile that a central one exceeds with chance
    `alpha`: the mean of the normal's, over equally likely values of the variance."""
    from scipy import special

    quantile = float(special.stdtrit(freedom, 1 - alpha))
    return float(special.ndtr(shift - quantile * _deviations(freedom)).mean())


@lru_cache
def _deviations(freedom: int) -> Floats:
    """Equally likely values of the standard deviation that `freedom` degrees estimate, where it is
    1."""
    from scipy import special

    likely = (np.arange(POINTS) + 0.5) / POINTS
    return np.asarray(np.sqrt(special.chdtri(freedom, likely) / freedom))
