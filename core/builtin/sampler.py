"""Draws tokens from logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from core.builtin.weights import Floats


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
    order = np.argsort(-logits, kind="stable")
    if sampling.top_k > 0:
        order = order[: sampling.top_k]
    best_first = logits[order].astype(np.float64)
    with np.errstate(over="ignore"):  # a tiny temperature gives -inf, and rightly a weight of 0
        weights = np.exp((best_first - best_first[0]) / sampling.temperature)
    mass = np.cumsum(weights / weights.sum())
    # Nucleus: the most likely tokens, up to the first that reaches top_p.
    kept = int(np.searchsorted(mass, sampling.top_p)) + 1
    mass = mass[:kept]
    return int(
        order[min(np.searchsorted(mass, random.random() * mass[-1], side="right"), len(mass) - 1)]
    )
