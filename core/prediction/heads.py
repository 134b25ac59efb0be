"""What a model's layers do with tokens, learned from recorded steps: loads against the contexts in
them.

Each layer's loads are a Gaussian process that is linear in the counts of contexts: a context adds
to a token's even share a load whose prior variance is the weight of its length, and a token adds
noise of variance 1, all in units that the layer's own residuals give. Steps may hold several
prompts: counts add up, and so do loads. The weights of a layer are those of WEIGHTS under which its
steps are likeliest. The first layer starts from what its router does without attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from core.prediction.contexts import Contexts, Counts
from core.prediction.recorded import Recorded
from core.routing import repeats
from core.routing.expected import Forecast
from core.stats.arrays import Floats, Ints

WEIGHTS = ((1.0, 0.0, 0.0), (1.0, 0.1, 0.1), (1.0, 0.3, 0.3), (0.3, 0.3, 1.0))
"""By length of context; chosen among by likelihood."""
GROUP = 30


@dataclass(frozen=True, slots=True)
class Head:
    """One layer: `table[length]` [contexts, experts], the load that a context adds."""

    weights: tuple[float, ...]
    table: tuple[Floats, ...]
    scale: float  # Σ over experts of the residuals' variance, per unit of the process
    precision: Floats  # [steps, steps]: inverse of the steps' covariance
    left_out: Floats  # [steps, experts]: each step's loads, as predicted from all others


@dataclass(frozen=True, slots=True)
class Heads:
    """All layers, learned from `recorded`."""

    recorded: Recorded
    contexts: Contexts
    counts: tuple[Counts, ...]  # of the steps, by length
    heads: tuple[Head, ...]
    gate: Floats | None  # [vocabulary, experts], of the first layer

    def predict(self, prompts: Sequence[Sequence[int]], *, spread: bool = True) -> Forecast:
        """Expected loads of prompts. Without `spread` they are taken as known, as in a table."""
        counts, squares = self.contexts.count(prompts)
        tokens = np.array([len(prompt) for prompt in prompts])
        loads = _prior(prompts, self.gate, self.recorded)
        variance = np.zeros(loads.shape[:2])
        for layer, head in enumerate(self.heads):
            for own, table in zip(counts, head.table, strict=True):
                loads[:, layer] += own @ table
            if spread:
                variance[:, layer] = head.scale * self._variance(head, counts, squares, tokens)
        return Forecast(tokens, loads, variance, self.recorded.top_k, self.recorded.layer_numbers)

    def _variance(self, head: Head, counts: list[Counts], squares: Floats, tokens: Ints) -> Floats:
        cross = _kernel(head.weights, counts, self.counts)
        explained = np.einsum("ps,st,pt->p", cross, head.precision, cross)
        return np.asarray(squares @ np.array(head.weights) - explained + tokens)

    def left_out(self, *, spread: bool = True) -> Forecast:
        """Each recorded step, as predicted from all the others."""
        of = self.recorded
        loads = np.stack([head.left_out for head in self.heads], axis=1)
        variance = np.zeros(loads.shape[:2])
        if spread:
            sure = [np.diag(head.precision) for head in self.heads]
            own = [head.scale / each for head, each in zip(self.heads, sure, strict=True)]
            variance = np.stack(own, axis=1)
        known = repeats.of([prompt for step in of.prompts for prompt in step])
        return Forecast(of.tokens, loads, variance, of.top_k, of.layer_numbers, known)

    def errors(self, *, spread: bool = True) -> Floats:
        """Measured less predicted excess² of each recorded step [steps], predicted from all
        others; in the mean over layers."""
        predicted = self.left_out(spread=spread)
        off = self._measured() - predicted.excess_squared().mean(axis=1)
        return np.asarray(off[self.recorded.tokens > 1])

    def error(self, *, spread: bool = True) -> float:
        """Mean distance of predicted from measured excess², of groups of GROUP steps in order, each
        step predicted from all others."""
        off = self.errors(spread=spread)
        firsts = np.arange(0, len(off), GROUP)
        steps = np.diff(np.append(firsts, len(off)))
        return float(abs(np.add.reduceat(off, firsts) / steps).mean())

    def _measured(self) -> Floats:
        predicted = self.left_out(spread=False)
        known = replace(predicted, loads=self.recorded.loads)
        return np.asarray(known.excess_squared().mean(axis=1))


def learn(recorded: Recorded, gate: Floats | None) -> Heads:
    """Heads for every layer that was recorded; `gate` as `Stack.gate_table`."""
    prompts = [prompt for step in recorded.prompts for prompt in step]
    step = np.repeat(np.arange(len(recorded.prompts)), [len(own) for own in recorded.prompts])
    firsts = np.flatnonzero(np.diff(step, prepend=-1))
    contexts = Contexts.seen_in(prompts)
    counts = tuple(_joined(own, step) for own in contexts.count(prompts)[0])
    first = gate if recorded.layer_numbers[0] == 0 else None
    left = recorded.loads - np.add.reduceat(_prior(prompts, first, recorded), firsts, axis=0)
    grams = [np.asarray((own @ own.T).toarray()) for own in counts]
    heads = tuple(
        _head(counts, grams, left[:, layer], recorded, layer) for layer in range(left.shape[1])
    )
    return Heads(recorded, contexts, counts, heads, first)


def _joined(counts: Counts, step: Ints) -> Counts:
    """Counts by step, from those by prompt."""
    from scipy import sparse

    places = (np.ones(len(step)), (step, np.arange(len(step))))
    return sparse.csr_array(places, shape=(step[-1] + 1, len(step))) @ counts


def _prior(prompts: Sequence[Sequence[int]], gate: Floats | None, of: Recorded) -> Floats:
    """Expected loads before anything is learned [prompts, layers, experts]."""
    layers, experts = of.loads.shape[1:]
    lengths = np.array([len(prompt) for prompt in prompts], np.float64)
    loads = np.tile(lengths[:, None, None] * of.top_k / experts, (1, layers, experts))
    if gate is not None:
        loads[:, 0] = [gate[list(prompt)].sum(axis=0) for prompt in prompts]
    return loads


def _head(
    counts: Sequence[Counts], grams: list[Floats], left: Floats, of: Recorded, layer: int
) -> Head:
    """The likeliest head for `left` [steps, experts], the loads beyond the prior's."""
    found = [_fitted(weights, grams, left, of.tokens) for weights in WEIGHTS]
    _, precision, weights = max(found, key=lambda each: each[0])
    pull = precision @ left
    sure = np.diag(precision)[:, None]
    return Head(
        weights,
        tuple(w * np.asarray(own.T @ pull) for w, own in zip(weights, counts, strict=True)),
        float((pull * pull / sure).mean(axis=0).sum()),
        precision,
        of.loads[:, layer] - pull / sure,
    )


def _fitted(
    weights: tuple[float, ...], grams: list[Floats], left: Floats, tokens: Ints
) -> tuple[float, Floats, tuple[float, ...]]:
    """Log likelihood of `left` up to a constant, with each expert's best scale; the precision."""
    covariance = sum(
        (w * gram for w, gram in zip(weights, grams, strict=True)), np.diag(1.0 * tokens)
    )
    precision = np.asarray(np.linalg.inv(covariance), np.float64)
    scale = np.einsum("se,st,te->e", left, precision, left) / len(left)
    determinant = np.linalg.slogdet(covariance)[1]
    fit = -len(left) * np.log(np.maximum(scale, 1e-12)).sum() - left.shape[1] * determinant
    return float(fit), precision, weights


def _kernel(
    weights: tuple[float, ...], counts: Sequence[Counts], steps: Sequence[Counts]
) -> Floats:
    parts = [w * (a @ b.T).toarray() for w, a, b in zip(weights, counts, steps, strict=True)]
    return np.asarray(sum(parts))
