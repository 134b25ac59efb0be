"""Draws tokens from logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core.builtin.weights import Floats

Wide = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one request's tokens are drawn, and when it ends."""

    max_tokens: int
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 or less: all tokens
    seed: int | None = None
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()


def draw(logits: Floats, sampling: Sampling, random: np.random.Generator) -> int:
    """Draw one token from logits [vocab], at a temperature above 0."""
    if sampling.top_k <= 0 and sampling.top_p == 1:  # all tokens are kept: sorting takes longest
        return _pick(_weights(logits, sampling), random)
    order = np.argsort(-logits, kind="stable")
    if sampling.top_k > 0:
        order = order[: sampling.top_k]
    weights = _weights(logits[order], sampling)
    # Nucleus: the most likely tokens, up to the first that reaches top_p.
    kept = int(np.searchsorted(np.cumsum(weights / weights.sum()), sampling.top_p)) + 1
    return int(order[_pick(weights[:kept], random)])


def _weights(logits: Floats, sampling: Sampling) -> Wide:
    """What the tokens' probabilities are proportional to."""
    wide = logits.astype(np.float64)
    with np.errstate(over="ignore"):  # a tiny temperature gives -inf, and rightly a weight of 0
        weights: Wide = np.exp((wide - wide.max()) / sampling.temperature)
    return weights


def _pick(weights: Wide, random: np.random.Generator) -> int:
    """An index, drawn in proportion to its weight."""
    mass = np.cumsum(weights)
    return min(int(np.searchsorted(mass, random.random() * mass[-1], "right")), len(mass) - 1)
