"""The excess CV: the imbalance beyond what a perfectly fair router shows by chance.

Its square is CV² - floor² (definitions: `core.routing.imbalance`). Squares are averaged before the
root is taken, so that the excess of a fair router tends to 0. It is shown where its square is above
SHOWN standard errors. That error is the larger of two: what blocks of steps show (Student's), and
what chance gives a fair router in as many steps and layers as are independent of each other.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from core.routing import steps
from core.routing.recurrence import Recurrence
from core.stats import bootstrap
from core.stats.arrays import Floats
from core.stats.bootstrap import Interval

SHOWN = bootstrap.Z  # standard errors


class Excess(msgspec.Struct, frozen=True):
    """An excess CV with its 95 % interval, null with a reason where the data support none; and its
    signed square with a standard error, which has a value at the noise floor too."""

    value: float | None
    reason: str | None = None
    interval: Interval | None = None
    squared: float | None = None
    error: float | None = None
    squared_interval: Interval | None = None


def squared(loads: Floats, tokens: npt.NDArray[Any], top_k: float) -> Floats:
    """CV² - floor² of `loads` over the last axis; nan where `tokens` < 2."""
    return np.asarray(steps.cv(loads) ** 2 - steps.floor_squared(loads, tokens, top_k))


def by_chance(
    recurrence: Recurrence, counted: float, supported: float, floor_fourth: float
) -> float:
    """The standard error of a fair router's mean CV² - floor² over `counted` steps. `supported`:
    how many steps × layers have a floor; `floor_fourth`: Σ over steps of (Σ over layers of
    floor²)² / layers."""
    if not supported:
        return math.nan
    layers = recurrence.layers / recurrence.effective_layers()
    repeats = layers * counted / recurrence.effective_steps(counted)
    return spread(math.sqrt(repeats * floor_fourth), recurrence.experts) / supported


def spread(floor_squared: float, experts: int) -> float:
    """The standard deviation of a fair router's CV², about floor² χ²(E-1) / (E-1)."""
    return floor_squared * math.sqrt(2 / max(experts - 1, 1))


def judged(squared: Floats, replicates: Floats, blocks: int, chance: float = 0.0) -> Excess:
    """The excess CV whose square is `squared`; `replicates`: that square in resamples of `blocks`
    blocks; `chance`: the standard error of a fair router's."""
    value = float(squared)
    if math.isnan(value):
        return Excess(None, "too few tokens for a noise floor")
    if blocks < 2:
        return Excess(None, "too few steps for a standard error", squared=value)
    usable = replicates[np.isfinite(replicates)]
    error = max(_students(usable, blocks) if len(usable) else math.nan, chance)
    if math.isnan(error):
        return Excess(None, "too few tokens for a noise floor")
    ends = bootstrap.interval(value, replicates, blocks)
    if value <= SHOWN * error:
        known = f"excess² {value:.4g} is not above {SHOWN:.2f} standard errors of {error:.4g}"
        return Excess(None, f"at the noise floor: {known}", None, value, error, ends)
    low, high = ends or (value, value)
    return Excess(value**0.5, None, (max(low, 0.0) ** 0.5, high**0.5), value, error, ends)


def _students(replicates: Floats, blocks: int) -> float:
    """The standard error, so that SHOWN of it are as far as Student's quantile of so few blocks."""
    wider = bootstrap.t_quantile(blocks - 1) / bootstrap.Z
    return bootstrap.standard_error(replicates, blocks) * wider
