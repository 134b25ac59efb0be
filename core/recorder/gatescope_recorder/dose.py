"""Forced routing: which experts are hot, how probable they must be, and a pool of choices to route
from.

Each token gets `top_k` distinct experts by successive sampling (Gumbel top-k) from two weights: hot
experts have one, cold experts the other. The weight is solved so that the CV over experts of the
expected counts is the level. What such sampling gives each expert, its inclusion probability,
follows exactly from the number of hot experts chosen.

The choices are drawn with a seed, once: a pool of them, which the engines read in order. Over the
whole pool every expert is chosen as often as its probability says, to a few rows; a stretch of it
looks like independent draws.

This module runs inside vLLM's workers too: standard library and NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .order import DoseError, Order, parse

ROWS = 1 << 14
LARGEST_LOG_WEIGHT = 60.0  # a cold expert is then chosen only where no hot one is left

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int32]


def hot_experts(pattern: str, experts: int, top_k: int, ranks: int) -> tuple[int, ...]:
    """The hot ones, ascending. hot-rank and spread have the same number of them, so that the same
    level means the same probabilities: only where they lie differs. DoseError where the pattern
    needs more ranks."""
    if pattern in ("hot-experts", "rotating"):
        return tuple(range(top_k))
    if ranks < 2 or experts % ranks:
        raise DoseError(
            f"{pattern} needs 2 or more expert-parallel ranks that divide {experts} experts, got {ranks}"
        )
    share = experts // ranks
    count = min(ranks, share)
    return (
        tuple(range(count))
        if pattern == "hot-rank"
        else tuple(rank * share for rank in range(count))
    )


def hot_chosen(weight: float, hot: int, experts: int, top_k: int) -> Floats:
    """[top_k + 1] probabilities that so many of a token's experts are hot. `weight`: a hot
    expert's; a cold one's is 1.

    The j-th draw is hot with probability (hot - h) w / ((hot - h) w + cold - (j - h)) where h hot
    ones are chosen.
    """
    cold = experts - hot
    chosen = np.zeros(top_k + 1)
    chosen[0] = 1.0
    for drawn in range(top_k):
        h = np.arange(top_k + 1)
        heat = np.maximum(hot - h, 0) * weight
        rest = np.maximum(cold - (drawn - h), 0).astype(np.float64)
        to_hot = np.divide(heat, heat + rest, out=np.zeros(top_k + 1), where=heat + rest > 0)
        chosen, moved = chosen * (1 - to_hot), chosen * to_hot
        chosen[1:] += moved[:-1]
    return chosen


def inclusion(weight: float, hot: int, experts: int, top_k: int) -> tuple[float, float]:
    """Probability that a token's choice includes a given hot expert, and a given cold one."""
    expected = float(hot_chosen(weight, hot, experts, top_k) @ np.arange(top_k + 1))
    return expected / hot, (top_k - expected) / (experts - hot)


def cv(weight: float, hot: int, experts: int, top_k: int) -> float:
    """CV over experts of the expected counts: population std over mean of the inclusion
    probabilities."""
    p_hot, p_cold = inclusion(weight, hot, experts, top_k)
    share = hot / experts
    return abs(p_hot - p_cold) * math.sqrt(share * (1 - share)) / (top_k / experts)


def highest(hot: int, experts: int, top_k: int) -> float:
    """The CV that so many hot experts can reach: √(E/k - 1), where hot = top_k, is the most that
    there is."""
    p_hot, p_cold = min(1.0, top_k / hot), max(0.0, top_k - hot) / (experts - hot)
    share = hot / experts
    return (p_hot - p_cold) * math.sqrt(share * (1 - share)) / (top_k / experts)


def weight_for(level: float, hot: int, experts: int, top_k: int) -> float:
    """The hot experts' weight at which the CV is `level`, by bisection of its logarithm. DoseError
    above `highest`."""
    most = highest(hot, experts, top_k)
    if level > most:
        raise DoseError(
            f"a CV of {level:g} cannot be had from {hot} hot of {experts} experts, {top_k} a token:"
            f" {math.floor(most * 1000) / 1000:g} is the most"
        )
    low, high = 0.0, LARGEST_LOG_WEIGHT
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if cv(math.exp(middle), hot, experts, top_k) < level else (low, middle)
        )
    return math.exp(high) if level else 1.0


def pool(
    dose: str, experts: int, top_k: int, ranks: int = 1, seed: int = 0, rows: int = ROWS
) -> Ids:
    """[rows, top_k] distinct experts of a token each, in random order. DoseError where the level
    cannot be had."""
    pattern, level = parse(dose)
    hot = np.array(hot_experts(pattern, experts, top_k, ranks))
    cold = np.setdiff1d(np.arange(experts), hot)
    chances = hot_chosen(weight_for(level, len(hot), experts, top_k), len(hot), experts, top_k)
    draw = np.random.default_rng([seed, *dose.encode()])
    parts = []
    for h, count in enumerate(_shares(chances, rows)):
        if count:
            sets = np.hstack(
                [
                    hot[_subsets(draw, count, len(hot), h)],
                    cold[_subsets(draw, count, len(cold), top_k - h)],
                ]
            )
            parts.append(sets)
    whole = draw.permuted(draw.permutation(np.concatenate(parts)), axis=1)
    return np.ascontiguousarray(whole, np.int32)


def _shares(chances: Floats, rows: int) -> list[int]:
    """`rows` divided by `chances`, each to one row."""
    ends = np.rint(np.cumsum(chances) / chances.sum() * rows).astype(int)
    return [int(count) for count in np.diff(ends, prepend=0)]


def _subsets(draw: np.random.Generator, count: int, of: int, size: int) -> npt.NDArray[np.int64]:
    """[count, size] random subsets of range(of), in which each member occurs equally often, to one:
    a random subset is followed by its shifts. Their order is random."""
    if not size:
        return np.zeros((count, 0), np.int64)
    cycles = -(-count // of)
    first = np.argsort(draw.random((cycles, of)), axis=1)[:, :size]
    shifted = (first[:, None, :] + np.arange(of)[None, :, None]) % of
    return draw.permutation(shifted.reshape(-1, size)[:count])


@dataclass(frozen=True, slots=True)
class Cut:
    """What one step takes from a pool: in layer l, row r is `pool[start + l * stagger + r]`, each
    id moved on by `shift`, modulo the number of experts."""

    dose: str
    start: int
    shift: int


class Course:
    """The way of one server through its pools. Every layer and data-parallel rank reads from a
    place of its own, on and on, so that a long run takes every row equally often. All
    tensor-parallel ranks see the same steps, and so agree.
    """

    def __init__(
        self,
        order: Order,
        experts: int,
        top_k: int,
        layers: int,
        max_tokens: int,
        dp: int = 0,
        dp_size: int = 1,
    ) -> None:
        """`max_tokens`: of one step at most. DoseError where a dose cannot be had."""
        self.order, self.experts, self.stagger = order, experts, ROWS // layers
        size = 2 * ROWS + max_tokens, top_k
        self.pools = {
            label: np.resize(pool(label, experts, top_k, order.ranks, order.seed), size)
            for label in order.labels
        }
        self._moved = {
            label: len(hot_experts(pattern, experts, top_k, order.ranks))
            if pattern == "rotating"
            else 0
            for label in order.labels
            for pattern, _ in [parse(label)]
        }
        self._steps, self._place = 0, dp * (self.stagger // dp_size)

    def next(self, doses: Iterable[str], tokens: int) -> Cut | None:
        """The cut of the next step; None where routing is natural. `doses`: of the requests in it
        ("": natural). A step that mixes doses is routed naturally: whoever reads the log sees whose
        tokens they were."""
        found = set(doses)
        start, steps = self._place % ROWS, self._steps
        self._place += tokens
        self._steps += 1
        label = found.pop() if len(found) == 1 else ""
        if label not in self.pools:
            return None
        return Cut(
            label, start, steps // self.order.rotate_steps * self._moved[label] % self.experts
        )
