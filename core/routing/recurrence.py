"""How far steps and layers repeat each other: the effective numbers of both that an excess rests
on.

Greedy decode may loop, requests may keep to their topic, layers may route alike: then S steps of L
layers show chance as few independent ones do. With u[s, l] the loads of a step and layer over their
mean, less 1, and ρ the correlation of u (from even loads, not from their own mean):

- steps: S / (1 + 2 Σ_τ (1 - τ/S) ρ²(τ)). An excess is a square, so ρ² counts. ρ is known for lags
  up to LAGS; longer ones count as the mean of the last half of those. What ρ² shows by chance is
  subtracted.
- layers: L² / Σ ρ²(l, l').

Memory is bounded: the last LAGS steps, and sums by lag. The first WHOLE steps are looked at, then
SAMPLED more each time that their number has doubled.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from core.stats.arrays import Floats, Ints

LAGS = 64
WHOLE, SAMPLED = 512, 128


@dataclass(slots=True)
class Recurrence:
    """Sums of products of a run's steps, by lag, and of its layers."""

    layers: int
    experts: int
    products: Floats = field(init=False)  # [LAGS + 1]
    pairs: Floats = field(init=False)  # [LAGS + 1]: how many steps each is a sum over
    shared: Floats = field(init=False)  # [layers, layers]
    recent: npt.NDArray[np.float32] = field(init=False)  # [up to LAGS, layers × experts]
    seen: int = 0  # steps
    window: tuple[int, int] = (0, WHOLE)  # the steps to look at: from, to

    def __post_init__(self) -> None:
        self.products, self.pairs = np.zeros((2, LAGS + 1))
        self.shared = np.zeros((self.layers, self.layers))
        self.recent = np.zeros((0, self.layers * self.experts), np.float32)

    def add(self, loads: npt.NDArray[Any], own: Ints) -> None:
        """The next steps of a run: those at the places `own` of `loads` [steps, layers,
        experts], in order."""
        first, end = self.window
        while first < self.seen + len(own):
            self._look(loads[own[max(first - self.seen, 0) : max(end - self.seen, 0)]])
            if end > self.seen + len(own):
                break
            first, end = 2 * end, 2 * end + SAMPLED
            self.window, self.recent = (first, end), self.recent[:0]
        self.seen += len(own)

    def _look(self, loads: npt.NDArray[Any]) -> None:
        sample = _deviations(loads)
        by_layer = sample.transpose(1, 0, 2).reshape(self.layers, -1)
        self.shared += by_layer @ by_layer.T
        for first in range(0, len(sample), LAGS):
            self._add_few(sample[first : first + LAGS].reshape(-1, self.recent.shape[1]))

    def _add_few(self, new: npt.NDArray[np.float32]) -> None:
        """At most LAGS steps."""
        known = np.concatenate([self.recent, new])
        products = new @ known.T
        lag = len(self.recent) + np.arange(len(new))[:, None] - np.arange(len(known))
        counted = (lag >= 0) & (lag <= LAGS)
        self.products += np.bincount(lag[counted], products[counted], LAGS + 1)
        self.pairs += np.bincount(lag[counted], minlength=LAGS + 1)
        self.recent = known[-LAGS:]

    def effective_layers(self) -> float:
        """How many layers route independently of each other."""
        size = np.sqrt(np.maximum(np.diag(self.shared), 1e-30))
        alike = (self.shared / np.outer(size, size)) ** 2
        np.fill_diagonal(alike, 1.0)
        return float(self.layers**2 / alike.sum())

    def effective_steps(self, steps: float) -> float:
        """How many of `steps` steps are independent of each other."""
        known = np.flatnonzero(self.pairs)
        if steps < 2 or len(known) < 2 or self.products[0] <= 0:
            return max(steps, 1.0)
        alike = self._alike(known[1:])
        lags = known[1:][: int(steps) - 1]
        beyond = steps - 1 - len(lags)  # Σ (1 - τ/S) of the lags from there on to S - 1:
        weight = beyond * (beyond + 1) / 2 / steps
        near = float(((1 - lags / steps) * alike[: len(lags)]).sum())
        repeated = 1 + 2 * (near + weight * float(alike[len(alike) // 2 :].mean()))
        return float(steps / max(repeated, 1.0))

    def _alike(self, lags: npt.NDArray[np.intp]) -> Floats:
        """ρ² by lag, less what independent steps show."""
        variance = self.products[0] / self.pairs[0]
        rho = self.products[lags] / self.pairs[lags] / variance
        freedom = max(self.experts - 1, 1) * self.effective_layers()
        return np.asarray(rho**2 - 1 / (freedom * self.pairs[lags]))


def _deviations(loads: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Loads over their mean, less 1; 0 where a layer got none."""
    wide = loads.astype(np.float32)
    mean = wide.mean(axis=-1, keepdims=True)
    over = np.divide(wide, mean, out=np.ones_like(wide), where=mean > 0)
    return np.asarray(over - 1, np.float32)
