"""The distribution of values between 0 and 1, in bins of 0.05."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from core.plots import palette
from core.plots.figure import Bars


def of(values: Sequence[float], label: str, counted: str) -> Bars:
    """One bar per bin, from the first that holds a value to the last."""
    edges = np.arange(21) / 20
    counts, _ = np.histogram(values, edges)
    used = np.flatnonzero(counts)
    bins = range(used[0], used[-1] + 1) if len(used) else range(0)
    return Bars(
        f"{label} (n = {len(values)})",
        label,
        counted,
        tuple(f"{edges[i]:.2f}–{edges[i + 1]:.2f}" for i in bins),
        counts[list(bins)].astype(np.float64),
        palette.DECODE,  # no backend's
        form=".0f",
    )
