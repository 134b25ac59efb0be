"""CV, noise floor and max/mean load of single engine steps, many steps at once.

Experts are processed a few at a time, as [experts, layers, steps]: a gate log stores them so, and
they fit a processor's cache. Variances come from Σx and Σx² of whole numbers, which are exact: in
float32 while both stay below 2^24, else in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from core.stats.arrays import Bools, Floats

EPSILON = 1e-10  # upstream's: keeps an empty mean from dividing by zero
CHUNK = 1 << 17  # counts at a time


@dataclass(frozen=True, slots=True)
class StepFigures:
    """Figures of steps, each [steps] except `rank_loads`. A sum or mean over layers is over those
    that saw tokens in that step."""

    layers: Floats  # layers that saw tokens
    cv: Floats  # Σ over layers of the CV of expert load
    supported: Floats  # layers that saw at least two tokens: those with a noise floor
    cv_squared: Floats  # Σ over those
    floor_squared: Floats  # Σ over those
    expert_ratio: Floats  # Σ over layers of max/mean load over experts
    expert_extra: Floats  # Σ over layers of max - mean load over experts, in tokens
    rank_ratio: Floats  # Σ over layers of max/mean load over EP ranks; 0 without expert parallelism
    rank_extra: Floats  # Σ over layers of max - mean load over EP ranks, in tokens
    rank_loads: Floats  # [EP ranks, steps]: Σ over layers
    violations: Bools  # Σ over experts is not top_k × tokens in some layer


def measure(
    loads: npt.NDArray[Any],
    tokens: npt.NDArray[Any],
    top_k: float,
    placement: tuple[int, ...],
    columns: Floats,
    by_rank: Floats | None = None,
) -> tuple[StepFigures, Floats]:
    """Figures of `loads` [steps, layers, experts], and the sums of loads over the steps that
    `columns` [steps, sums] selects: [sums, layers, experts].

    `tokens` is [steps], or [steps, layers] where layers saw different steps. `placement[e]` is the
    EP rank of expert e; it is empty where `by_rank` [steps, layers, ranks] gives the ranks' loads.
    """
    by_expert = np.ascontiguousarray(loads.transpose(2, 1, 0))
    totals, sums = _totals(by_expert, placement, columns)
    if by_rank is not None:
        totals = replace(totals, ranks=by_rank.transpose(2, 1, 0))
    n = np.atleast_2d(np.asarray(tokens, np.float64).T)
    return _figures(len(by_expert), top_k, n, totals), np.ascontiguousarray(
        sums.transpose(2, 1, 0), np.float64
    )


@dataclass(frozen=True, slots=True)
class _Totals:
    """Totals over the experts of each layer and step, [layers, steps]; `ranks` [EP ranks, layers,
    steps]."""

    total: Floats
    squares: Floats
    peak: Floats
    ranks: Floats


def _totals(
    by_expert: npt.NDArray[Any], placement: tuple[int, ...], columns: Floats
) -> tuple[_Totals, npt.NDArray[Any]]:
    """The totals, and the sums over the steps that `columns` selects, [experts, layers, sums]: one
    pass, a few experts at a time."""
    experts, layers, steps = by_expert.shape
    kind = _exact(by_expert)
    few = max(1, CHUNK // max(layers * steps, 1))
    total, squares = np.zeros((2, layers * steps), kind)
    ranks = np.zeros((max(placement, default=-1) + 1, layers * steps), kind)
    sums, columns = np.empty((experts, layers, columns.shape[1]), kind), columns.astype(kind)
    room, ones = np.empty((min(few, experts), layers, steps), kind), np.ones(few, kind)
    for first in range(0, experts, few):
        slab = room[: experts - first]
        slab[...] = by_expert[first : first + few]
        flat, one = slab.reshape(len(slab), -1), ones[: len(slab)]
        total += one @ flat
        picked = slab.reshape(len(slab) * layers, steps) @ columns
        sums[first : first + few] = picked.reshape(len(slab), layers, columns.shape[1])
        for expert, rank in zip(flat, placement[first : first + few], strict=False):
            ranks[rank] += expert
        np.multiply(flat, flat, out=flat)
        squares += one @ flat
    peak = by_expert.max(axis=0, initial=0).astype(np.float64)
    wide = [
        a.astype(np.float64).reshape(*a.shape[:-1], layers, steps) for a in (total, squares, ranks)
    ]
    return _Totals(wide[0], wide[1], peak, wide[2]), sums


def _exact(loads: npt.NDArray[Any]) -> type[np.floating[Any]]:
    """float32 if Σx² over experts and Σx over steps are whole numbers below 2^24, else float64."""
    if not np.issubdtype(loads.dtype, np.integer):
        return np.float64
    largest, (experts, _, steps) = int(loads.max(initial=0)), loads.shape
    return np.float32 if max(experts * largest**2, steps * largest) < 1 << 24 else np.float64


def _figures(experts: int, top_k: float, n: Floats, of: _Totals) -> StepFigures:
    """`n` [1 or layers, steps]: tokens. What is the same in every layer is computed once a step."""
    total = of.total[:1] if (of.total == of.total[:1]).all() else of.total
    layers, _ = of.total.shape
    seen, supported, mean = n > 0, n >= 2, total / experts
    busy = seen & (total > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(busy, 1 / mean, 0.0)
        square = np.where(supported, experts / top_k**2 / (n * n * (n - 1)), 0.0)
    scale = np.where(seen, 1 / (experts * (mean + EPSILON)), 0.0)
    variance = np.maximum(experts * of.squares - total * total, 0.0)  # × experts²
    ranks = len(of.ranks)
    busiest = of.ranks.max(axis=0) if ranks else of.total
    whole = np.ones((layers, 1))
    return StepFigures(
        layers=_over_layers(whole, seen),
        cv=_over_layers(np.sqrt(variance), scale),
        supported=_over_layers(whole, supported),
        cv_squared=_over_layers(variance, scale * scale * supported),
        floor_squared=_over_layers(total * n - of.squares, square),
        expert_ratio=_over_layers(of.peak, inverse),
        expert_extra=_over_layers(of.peak - mean, busy),
        rank_ratio=_over_layers(busiest, inverse * ranks / experts),
        rank_extra=_over_layers(busiest - total / max(ranks, 1), busy),
        rank_loads=of.ranks.sum(axis=1),
        violations=(total != top_k * n).any(axis=0),
    )


def _over_layers(values: Floats, weight: npt.NDArray[Any]) -> Floats:
    """Σ over layers of values × weight, each [1 or layers, steps]; one of them has every layer."""
    if len(weight) == 1:
        return np.asarray(values.sum(axis=0) * weight[0])
    return np.asarray((values * weight).sum(axis=0))


def cv(loads: npt.NDArray[Any]) -> Floats:
    """Coefficient of variation over the last axis, as upstream computes it."""
    return np.asarray(loads.std(axis=-1) / (loads.mean(axis=-1) + EPSILON))


def floor_squared(loads: Floats, tokens: npt.NDArray[Any], top_k: float) -> Floats:
    """Squared noise floor over the last axis: (E/k²) Σ p(1-p)/(n-1), p = x/n; nan if tokens < 2."""
    n, experts = np.asarray(tokens, dtype=np.float64), loads.shape[-1]
    total, squares = loads.sum(axis=-1), (loads * loads).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        floor = experts / top_k**2 * (total / n - squares / n**2) / (n - 1)
    return np.where(n >= 2, floor, np.nan)
