"""Routers with a known skew, and gate logs of their choices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from core.recorder.gatescope_recorder.gatelog import GateLogWriter, Header, Step
from core.recorder.gatescope_recorder.kernel import Kernel
from core.routing.gatelog import GateLog

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def routed(
    rng: np.random.Generator,
    tokens: Sequence[int] | Counts,
    layers: int,
    weights: Floats,
    top_k: int = 2,
) -> Counts:
    """[steps, layers, experts]: every token draws top_k distinct experts, one after the other, by
    `weights`."""
    sizes = np.asarray(tokens)
    gumbel = rng.gumbel(size=(int(sizes.sum()), layers, len(weights))) + np.log(weights)
    chosen = np.argpartition(-gumbel, top_k - 1, axis=-1)[..., :top_k]
    hit = np.zeros(gumbel.shape, np.int64)
    np.put_along_axis(hit, chosen, 1, axis=-1)
    return np.add.reduceat(hit, np.concatenate([[0], np.cumsum(sizes)[:-1]]), axis=0)


def inclusion_cv(weights: Floats) -> float:
    """CV of the exact probabilities that a token picks each expert, for top_k = 2."""
    p = weights / weights.sum()
    pairs = p[:, None] * p[None, :] / (1 - p[:, None])  # first row's expert, then the column's
    np.fill_diagonal(pairs, 0.0)
    picked = pairs.sum(axis=0) + pairs.sum(axis=1)
    return float(picked.std() / picked.mean())


def fair_cv(experts: int, top_k: int, tokens: int) -> float:
    """The CV of a fair router by chance: √((E/k - 1)/n)."""
    return math.sqrt((experts / top_k - 1) / tokens)


def as_log(loads: Counts, label: str = "001", prefill: Sequence[int] | None = None) -> GateLog:
    """A log of `loads` [steps, layers, experts] in memory; top_k = 2."""
    tokens = loads[:, 0].sum(axis=1) // 2
    columns = {
        "index": np.arange(len(loads)),
        "tokens": tokens,
        "prefill_tokens": np.array(prefill or [0] * len(loads)),
        "start_ns": np.arange(len(loads)) * 10**7,
    }
    return GateLog(loads, columns, {label: tokens}, 2)


def write_log(
    path: Path,
    loads: Counts,
    *,
    labels: Sequence[str] | None = None,
    tokens: Sequence[int] | None = None,
    durations_ns: Sequence[int] | None = None,
    prefill: Sequence[int] | None = None,
    ranks: int = 1,
    placement: tuple[int, ...] = (),
    top_k: int = 2,
    kernel: Kernel | None = None,
) -> Path:
    """A binary gate log of `loads` [steps, layers, experts], one segment label a step ("001" by
    default)."""
    steps, layers, experts = loads.shape
    header = Header(
        "test", "test", layers, experts, top_k, ranks=ranks, placement=placement, kernel=kernel
    )
    writer = GateLogWriter(path, header)
    for s in range(steps):
        n = int(loads[s, 0].sum()) // top_k if tokens is None else tokens[s]
        prompt = 0 if prefill is None else prefill[s]
        decoded = n - prompt
        took = 1_000_000 if durations_ns is None else int(durations_ns[s])
        label = "001" if labels is None else labels[s]
        writer.append(
            Step(s, s * 2_000_000, took, n, prompt, decoded, decoded or 1, {label: n}, loads[s])
        )
    writer.close()
    return path
