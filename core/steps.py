"""What one engine step shows: CV, noise floor and max/mean of its loads, for many steps at once.

The work is done expert by expert on slabs [layers, steps], which is how a gate log stores them and what fits a
processor's cache. Variances come from Σx and Σx² of whole numbers, which are exact: in float32 while both stay below
2^24, else in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

EPSILON = 1e-10  # upstream's: keeps an empty mean from dividing by zero

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StepFigures:
    """Each [steps]. A sum or mean over layers takes the layers that saw tokens in that step."""

    layers: Floats  # layers that saw tokens
    cv: Floats  # Σ over layers of the CV of expert load
    supported: Floats  # layers that saw at least two tokens: those with a noise floor
    cv_squared: Floats  # Σ over those
    floor_squared: Floats  # Σ over those
    expert_ratio: Floats  # Σ over layers of max/mean load over experts
    expert_extra: Floats  # Σ over layers of max - mean load over experts, in tokens
    rank_ratio: Floats  # Σ over layers of max/mean load over EP ranks; 0 without expert parallelism
    rank_extra: Floats  # Σ over layers of max - mean load over EP ranks, in tokens
    violations: npt.NDArray[np.bool_]  # Σ over experts is not top_k × tokens in some layer


def measure(
    loads: npt.NDArray[Any],
    tokens: npt.NDArray[Any],
    top_k: float,
    placement: tuple[int, ...],
    columns: Floats,
) -> tuple[StepFigures, Floats]:
    """Figures of `loads` [steps, layers, experts], and the sums of loads that `columns` [steps, sums] picks.

    `tokens` is [steps], or [steps, layers] where layers hold different steps; `placement[e]` the EP rank of expert e.
    The sums are [sums, layers, experts].
    """
    by_expert = np.ascontiguousarray(loads.transpose(2, 1, 0))
    experts, layers, steps = by_expert.shape
    ranks = max(placement) + 1 if placement else 0
    kind = _exact(loads, tokens, top_k)
    total, squares, peak, slab, square = (np.zeros((layers, steps), kind) for _ in range(5))
    rank_loads = np.zeros((ranks, layers, steps), kind)
    sums, columns = np.empty((experts, layers, columns.shape[1]), kind), columns.astype(kind)
    for e in range(experts):
        slab[...] = by_expert[e]
        total += slab
        np.multiply(slab, slab, out=square)
        squares += square
        np.maximum(peak, slab, out=peak)
        np.matmul(slab, columns, out=sums[e])
        if ranks:
            rank_loads[placement[e]] += slab
    n = np.broadcast_to(np.asarray(tokens, dtype=np.float64).T, (layers, steps))
    wide = (a.astype(np.float64) for a in (total, squares, peak, rank_loads))
    return _figures(experts, top_k, n, *wide), np.ascontiguousarray(sums.transpose(2, 1, 0), np.float64)


def _exact(loads: npt.NDArray[Any], tokens: npt.NDArray[Any], top_k: float) -> type[np.floating[Any]]:
    """float32 where Σx² of a step, at most (Σx)², and Σx over steps are whole numbers below 2^24."""
    largest = float(np.max(tokens, initial=0)) * top_k
    whole = np.issubdtype(loads.dtype, np.integer) and loads.max(initial=0) <= largest
    return np.float32 if whole and max(largest**2, largest * len(loads)) < 1 << 24 else np.float64


def _figures(
    experts: int, top_k: float, n: Floats, total: Floats, squares: Floats, peak: Floats, rank_loads: Floats
) -> StepFigures:
    seen, supported = n > 0, n >= 2
    mean = total / experts
    variance = np.maximum(experts * squares - total * total, 0.0) / experts**2
    cv = np.where(seen, np.sqrt(variance) / (mean + EPSILON), 0.0)
    floor = np.where(supported, _floor_squared(experts, top_k, n, total, squares), 0.0)
    busy = seen & (total > 0)
    expert_ratio, expert_extra = _over_mean(peak, mean, busy)
    rank_ratio = rank_extra = np.zeros(n.shape[1])
    if len(rank_loads):
        rank_ratio, rank_extra = _over_mean(rank_loads.max(axis=0), total / len(rank_loads), busy)
    return StepFigures(
        layers=seen.sum(axis=0).astype(np.float64),
        cv=cv.sum(axis=0),
        supported=supported.sum(axis=0).astype(np.float64),
        cv_squared=np.where(supported, cv * cv, 0.0).sum(axis=0),
        floor_squared=floor.sum(axis=0),
        expert_ratio=expert_ratio,
        expert_extra=expert_extra,
        rank_ratio=rank_ratio,
        rank_extra=rank_extra,
        violations=(total != top_k * n).any(axis=0),
    )


def _over_mean(peak: Floats, mean: Floats, busy: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Σ over layers of peak/mean, and of peak - mean."""
    ratio = np.divide(peak, mean, out=np.zeros_like(peak), where=busy)
    return ratio.sum(axis=0), np.where(busy, peak - mean, 0.0).sum(axis=0)


def _floor_squared(experts: int, top_k: float, n: Floats, total: Floats, squares: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(experts / top_k**2 * (total / n - squares / n**2) / (n - 1))


def cv(loads: npt.NDArray[Any]) -> Floats:
    """Coefficient of variation over the last axis, as upstream computes it."""
    return np.asarray(loads.std(axis=-1) / (loads.mean(axis=-1) + EPSILON))


def floor_squared(loads: Floats, tokens: npt.NDArray[Any], top_k: float) -> Floats:
    """Squared noise floor over the last axis: (E/k²) Σ p(1-p)/(n-1), p = x/n; nan where tokens < 2."""
    n = np.asarray(tokens, dtype=np.float64)
    floor = _floor_squared(loads.shape[-1], top_k, n, loads.sum(axis=-1), (loads * loads).sum(axis=-1))
    return np.where(n >= 2, floor, np.nan)
