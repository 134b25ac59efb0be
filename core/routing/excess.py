"""The excess CV: the imbalance beyond what a perfectly fair router shows by chance.

Its square is CV² - floor² (definitions: `core.routing.imbalance`). Squares are averaged before the
root is taken, so that the excess of a fair router tends to 0.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from core.routing import steps
from core.stats import bootstrap
from core.stats.arrays import Floats
from core.stats.bootstrap import Interval


class Excess(msgspec.Struct, frozen=True):
    """An excess CV with its 95 % interval; null with a reason where the data support none."""

    value: float | None
    reason: str | None = None
    interval: Interval | None = None


def squared(loads: Floats, tokens: npt.NDArray[Any], top_k: float) -> Floats:
    """CV² - floor² of `loads` over the last axis; nan where `tokens` < 2."""
    return np.asarray(steps.cv(loads) ** 2 - steps.floor_squared(loads, tokens, top_k))


def judged(squared: Floats, replicates: Floats, blocks: int) -> Excess:
    """The excess CV whose square is `squared`; `replicates`: that square in resamples of `blocks`
    blocks."""
    if blocks < 2:
        return Excess(None, "too few steps for a standard error")
    usable = replicates[np.isfinite(replicates)]
    value = float(squared)
    error = bootstrap.standard_error(usable, blocks) if len(usable) else np.nan
    if np.isnan(value) or np.isnan(error):
        return Excess(None, "too few tokens for a noise floor")
    if value <= error:
        known = f"excess² {value:.4g} does not exceed its standard error, {error:.4g}"
        return Excess(None, f"at the noise floor: {known}")
    low, high = bootstrap.interval(value, replicates, blocks) or (value, value)
    return Excess(value**0.5, None, (max(low, 0.0) ** 0.5, high**0.5))
