"""Exact prefill routing: the prompts are run through the model itself, one layer at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from core.errors import UsageError
from core.prediction.stack import Picks, Stack
from core.routing.expected import Forecast
from core.stats.arrays import Floats

Tell = Callable[[int, int, float], None]
"""(layers done, layers in all, seconds so far)."""


@dataclass(frozen=True, slots=True)
class Routed:
    """The experts of every token: `picks[layer][prompt]`, for the layers in `layer_numbers`."""

    picks: tuple[tuple[Picks, ...], ...]
    layer_numbers: tuple[int, ...]
    experts: int
    top_k: int

    def forecast(self) -> Forecast:
        """Loads by prompt; they are known, so nothing spreads."""
        loads = np.array([[self._loads(one) for one in layer] for layer in self.picks])
        tokens = np.array([len(one) for one in self.picks[0]])
        return Forecast(
            tokens,
            loads.transpose(1, 0, 2),
            self.top_k,
            self.layer_numbers,
        )

    def of_tokens(self, prompt: int) -> Floats:
        """What each token of one prompt adds to an even load: share of its picks less 1 / experts
        [tokens, layers, experts]."""
        chosen = np.array([layer[prompt] for layer in self.picks])  # [layers, tokens, top_k]
        hot = np.zeros((*chosen.shape[:2], self.experts))
        np.put_along_axis(hot, chosen.astype(np.int64), 1 / self.top_k, axis=2)
        return np.asarray(hot.transpose(1, 0, 2) - 1 / self.experts)

    def _loads(self, picks: Picks) -> Floats:
        return np.bincount(picks.ravel(), minlength=self.experts).astype(np.float64)


def route(
    stack: Stack,
    prompts: Sequence[Sequence[int]],
    layers: Collection[int] | None = None,
    tell: Tell | None = None,
) -> Routed:
    """The routing of `prompts` in the given layers (None: all), up to the last of which the model
    is run. UsageError if none of them has experts."""
    wanted = range(stack.depth) if layers is None else layers
    last, began = min(max(wanted), stack.depth - 1), time.monotonic()
    found: dict[int, tuple[Picks, ...]] = {}
    hidden = stack.embed(prompts)
    for layer in range(last + 1):
        picks = stack.through(layer, hidden)
        if picks is not None and layer in wanted:
            found[layer] = tuple(picks)
        if tell:
            tell(layer + 1, last + 1, time.monotonic() - began)
    if not found:
        raise UsageError(
            f"--layers: none of {stack.name}'s {stack.depth} layers that were named has experts"
        )
    return Routed(tuple(found.values()), tuple(found), stack.experts, stack.top_k)


def needs(stack: Stack, prompts: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Bytes at most: for a layer while it is loaded and run, and for the hidden states."""
    return stack.peak_bytes, stack.token_bytes * sum(map(len, prompts))
