"""Descriptive statistics: Gini coefficient, and the median of what is known."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from core.stats.arrays import Floats


def gini(values: Floats) -> Floats:
    """Gini coefficient over the last axis, Σ (2i - n - 1) x_i / (n Σ x) with x ascending, i from 1:
    0 even, (n-1)/n all in one; nan where the sum is 0."""
    n = values.shape[-1]
    place = 2 * np.arange(1, n + 1) - n - 1
    with np.errstate(invalid="ignore"):
        return np.asarray(
            (np.sort(values, axis=-1) * place).sum(axis=-1) / (n * values.sum(axis=-1))
        )


def median(values: Iterable[float | None]) -> float | None:
    """Median of the values that are known; None if none is."""
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None
