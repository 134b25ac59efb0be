"""Neighbours that share one cell: the largest represents them all, so that no hot one is lost."""

from __future__ import annotations

import numpy as np

from core.stats.arrays import Floats


def each(count: int, room: int) -> int:
    """How many neighbours share a cell, so that `count` fit into `room`."""
    return -(-count // max(room, 1))


def folded(values: Floats, size: int, axis: int) -> Floats:
    """The largest of every `size` neighbours along an axis."""
    starts = np.arange(0, values.shape[axis], size)
    return np.asarray(np.maximum.reduceat(values, starts, axis=axis))


def span(first: int, size: int, count: int) -> str:
    """`12`, or `12–15` where several share the cell."""
    last = min(first + size, count) - 1
    return str(first) if last == first else f"{first}–{last}"
