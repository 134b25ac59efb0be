"""What a model's layers do with tokens, learned from recorded steps: loads against the contexts in
them.

Each layer's loads are a Gaussian process that is linear in the counts of contexts: a context adds
to a token's even share a load whose prior variance is the weight of its length, and a token adds
noise of variance 1, all in units of `scale`, one an expert. Steps may hold several prompts: counts
add up, and so do loads. The weights of a layer are the likeliest: variance components, by the
minorise-maximise steps of Zhou, Hu, Zhou and Lange (2019). The first layer starts from what its
router does without attention.

What the process is unsure of is shared by prompts that share contexts, and repeats where a prompt
repeats them. How much more or less than that a dataset is off by, and which way, is seen in the
recorded datasets, each predicted from the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from core.prediction import contexts
from core.prediction.contexts import Contexts, Counts
from core.prediction.recorded import Recorded
from core.routing import repeats
from core.routing.expected import Checked, Doubt, Forecast
from core.stats.arrays import Floats, Ints

ROUNDS = 60
WEIGHED = 600  # steps at most that choose the weights
MOST = 1e3  # weight, where no noise is seen


@dataclass(frozen=True, slots=True)
class Head:
    """One layer: `table[length]` [contexts, experts], the load that a context adds."""

    weights: tuple[float, ...]  # by length of context
    table: tuple[Floats, ...]
    scale: Floats  # [experts]: variance per unit of the process
    precision: Floats  # [steps, steps]: inverse of the steps' covariance
    pull: Floats  # [steps, experts]: precision times the loads beyond the prior's


@dataclass(frozen=True, slots=True)
class Heads:
    """All layers, learned from `recorded`."""

    recorded: Recorded
    contexts: Contexts
    counts: tuple[Counts, ...]  # of the steps, by length
    heads: tuple[Head, ...]
    gate: Floats | None  # [vocabulary, experts], of the first layer
    checked: Checked | None = None  # the recorded datasets, as left out

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
        scale = np.array([head.scale for head in self.heads])
        return Doubt(np.array(alike), scale, self.checked)

    def left_out(self, *, spread: bool = True) -> list[Forecast]:
        """Each recorded dataset, as predicted from the steps that it has no part in."""
        return [self._without(np.array(places), spread=spread) for places in self.recorded.datasets]

    def _without(self, places: Ints, *, spread: bool) -> Forecast:
        of = self.recorded.of(places)
        blocks = [head.precision[np.ix_(places, places)] for head in self.heads]
        alike = np.linalg.inv(np.array(blocks))
        off = alike @ np.array([head.pull[places] for head in self.heads])
        doubt = Doubt(alike, np.array([head.scale for head in self.heads])) if spread else None
        known = repeats.of([prompt for step in of.prompts for prompt in step])
        loads = of.loads - off.transpose(1, 0, 2)
        return Forecast(of.tokens, loads, of.top_k, of.layer_numbers, doubt, known)

    def with_check(self) -> Heads:
        """The same, with how far the recorded datasets are off, as left out."""
        of = self.left_out()
        expected, error = np.array([one.mean_excess() for one in of]).T
        off = (self._measured(of) - expected) / error
        return replace(self, checked=Checked(expected, off))

    def error(self, *, spread: bool = True) -> float:
        """Mean distance of predicted from measured excess² over the recorded datasets, as left out;
        with `spread` as corrected by the others."""
        of = self.left_out(spread=spread)
        expected, error = np.array([one.mean_excess() for one in of]).T
        off = self._measured(of) - expected
        if spread:
            known, places = off / error, np.arange(len(of))
            for place, value in enumerate(expected):
                rest = places != place
                off[place] -= Checked(expected[rest], known[rest]).near(value)[0] * error[place]
        return float(abs(off).mean())

    def _measured(self, of: Sequence[Forecast]) -> Floats:
        """Excess² of each dataset, of which `of` is the forecast."""
        loads = [self.recorded.loads[list(places)] for places in self.recorded.datasets]
        pairs = zip(of, loads, strict=True)
        return np.array([replace(f, loads=own, doubt=None).mean_excess()[0] for f, own in pairs])


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
        _head(counts, parts, left[:, layer], recorded.tokens) for layer in range(left.shape[1])
    )
    return Heads(recorded, seen, counts, heads, first).with_check()


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


def _head(counts: Sequence[Counts], parts: Sequence[Floats], left: Floats, tokens: Ints) -> Head:
    """The likeliest head for `left` [steps, experts], the loads beyond the prior's. `parts`: the
    steps' grams, by length."""
    weights = _likeliest(parts, left, tokens)
    noise = np.diag(1.0 * tokens)
    precision = np.asarray(np.linalg.inv(_weighed(weights, parts) + noise), np.float64)
    pull = precision @ left
    return Head(
        weights,
        tuple(w * np.asarray(own.T @ pull) for w, own in zip(weights, counts, strict=True)),
        np.asarray((pull * pull / np.diag(precision)[:, None]).mean(axis=0), np.float64),
        precision,
        np.asarray(pull, np.float64),
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
