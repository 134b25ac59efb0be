"""What a model's layers do with tokens, learned from recorded steps: loads against the contexts in
them.

Each layer's loads are a Gaussian process that is linear in the counts of contexts: a context adds
to a token's even share a load whose prior variance is the weight of its length, and a token adds
noise of variance 1, all in units of `scale`, one an expert. Steps may hold several prompts: counts
add up, and so do loads. The weights of a layer are the likeliest: variance components, by the
minorise-maximise steps of Zhou, Hu, Zhou and Lange (2019). The first layer starts from what its
router does without attention.

What the process is unsure of is shared by prompts that share contexts, and repeats where a prompt
repeats them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from core.prediction import contexts
from core.prediction.contexts import Contexts, Counts
from core.prediction.recorded import Recorded
from core.routing import repeats
from core.routing.expected import Doubt, Forecast
from core.stats.arrays import Floats, Ints

ROUNDS = 60
WEIGHED = 600  # steps at most that choose the weights
MOST = 1e3  # weight, where no noise is seen
GROUP = 30


@dataclass(frozen=True, slots=True)
class Head:
    """One layer: `table[length]` [contexts, experts], the load that a context adds."""

    weights: tuple[float, ...]  # by length of context
    table: tuple[Floats, ...]
    scale: Floats  # [experts]: variance per unit of the process
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
        counts, of = self.contexts.count(prompts), self.recorded
        tokens = np.array([len(prompt) for prompt in prompts])
        loads = _prior(prompts, self.gate, of)
        for layer, head in enumerate(self.heads):
            loads[:, layer] += sum(c @ t for c, t in zip(counts, head.table, strict=True))
        doubt = self._doubt(prompts, counts, tokens) if spread else None
        return Forecast(tokens, loads, of.top_k, of.layer_numbers, doubt)

    def _doubt(
        self, prompts: Sequence[Sequence[int]], counts: Sequence[Counts], tokens: Ints
    ) -> Doubt:
        all_counts = Contexts.seen_in(prompts).count(prompts)
        own, cross = contexts.grams(all_counts, all_counts), contexts.grams(counts, self.counts)
        alike = []
        for head in self.heads:
            known = _weighed(head.weights, cross)
            explained = known @ head.precision @ known.T
            alike.append(_weighed(head.weights, own) + np.diag(1.0 * tokens) - explained)
        return Doubt(np.array(alike), np.array([head.scale for head in self.heads]), self.wider())

    def left_out(self, *, spread: bool = True) -> Forecast:
        """Each recorded step, as predicted from all the others."""
        of = self.recorded
        loads = np.stack([head.left_out for head in self.heads], axis=1)
        alike = np.array([np.diag(1 / np.diag(head.precision)) for head in self.heads])
        doubt = Doubt(alike, np.array([head.scale for head in self.heads])) if spread else None
        known = repeats.of([prompt for step in of.prompts for prompt in step])
        return Forecast(of.tokens, loads, of.top_k, of.layer_numbers, doubt, known)

    def wider(self) -> float:
        """Root mean square of the recorded steps' errors over what was expected of them, 1 at
        least; each step predicted from all others."""
        of = self.left_out()
        expected = np.array([of.of([place]).error() for place in range(len(of.tokens))])
        return max(1.0, float(np.sqrt(np.nanmean((self._errors(of) / expected) ** 2))))

    def error(self, *, spread: bool = True) -> float:
        """Mean distance of predicted from measured excess², of groups of GROUP steps in order, each
        step predicted from all others."""
        off = self._errors(self.left_out(spread=spread))
        off = off[np.isfinite(off)]
        firsts = np.arange(0, len(off), GROUP)
        steps = np.diff(np.append(firsts, len(off)))
        return float(abs(np.add.reduceat(off, firsts) / steps).mean())

    def _errors(self, predicted: Forecast) -> Floats:
        """Measured less predicted excess² [steps], in the mean over layers; nan for one token."""
        known = replace(predicted, loads=self.recorded.loads, doubt=None)
        return np.asarray((known.excess_squared() - predicted.excess_squared()).mean(axis=1))


def learn(recorded: Recorded, gate: Floats | None) -> Heads:
    """Heads for every layer that was recorded; `gate` as `Stack.gate_table`."""
    prompts = [prompt for step in recorded.prompts for prompt in step]
    step = np.repeat(np.arange(len(recorded.prompts)), [len(own) for own in recorded.prompts])
    firsts = np.flatnonzero(np.diff(step, prepend=-1))
    seen = Contexts.seen_in(prompts)
    counts = tuple(_joined(own, step) for own in seen.count(prompts))
    first = gate if recorded.layer_numbers[0] == 0 else None
    left = recorded.loads - np.add.reduceat(_prior(prompts, first, recorded), firsts, axis=0)
    parts = contexts.grams(counts, counts)
    heads = tuple(
        _head(counts, parts, left[:, layer], recorded, layer) for layer in range(left.shape[1])
    )
    return Heads(recorded, seen, counts, heads, first)


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
    counts: Sequence[Counts], parts: Sequence[Floats], left: Floats, of: Recorded, layer: int
) -> Head:
    """The likeliest head for `left` [steps, experts], the loads beyond the prior's. `parts`: the
    steps' grams, by length."""
    weights = _likeliest(parts, left, of.tokens)
    noise = np.diag(1.0 * of.tokens)
    precision = np.asarray(np.linalg.inv(_weighed(weights, parts) + noise), np.float64)
    pull = precision @ left
    sure = np.diag(precision)[:, None]
    return Head(
        weights,
        tuple(w * np.asarray(own.T @ pull) for w, own in zip(weights, counts, strict=True)),
        np.asarray((pull * pull / sure).mean(axis=0), np.float64),
        precision,
        of.loads[:, layer] - pull / sure,
    )


def _likeliest(parts: Sequence[Floats], left: Floats, tokens: Ints) -> tuple[float, ...]:
    """Weights of the parts beside noise of weight 1, each expert with its own best scale."""
    some = np.arange(0, len(left), -(-len(left) // WEIGHED))
    mine = [part[np.ix_(some, some)] for part in (*parts, np.diag(1.0 * tokens))]
    own, weights = left[some], [1.0] * len(mine)
    for _ in range(ROUNDS):
        precision = np.asarray(np.linalg.inv(_weighed(weights, mine)), np.float64)
        pull = precision @ own
        scale = np.maximum((own * pull).mean(axis=0), 1e-12)
        seen = np.array([(pull / scale * (part @ pull)).sum() for part in mine])
        due = own.shape[1] * np.array([(precision * part).sum() for part in mine])
        found = np.array(weights) * np.sqrt(seen / due)
        weights = np.minimum(found / found[-1], MOST).tolist()
    return tuple(weights[:-1])


def _weighed(weights: Sequence[float], parts: Sequence[Floats]) -> Floats:
    return np.asarray(sum(w * part for w, part in zip(weights, parts, strict=True)))
