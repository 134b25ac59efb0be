"""The work of a step: what each rank's MoE kernel computes for the loads that the router gave it.

- active experts: those with a token; their weights are read.
- tiles: Σ⌈x/BLOCK_M⌉ over a rank's experts; a tile computes BLOCK_M rows of one expert, padded.
- waves of a GEMM: ⌈tiles · ⌈columns/BLOCK_N⌉ / SMs⌉.
- amount: waves weighted by the length of the sums that each GEMM's tiles make (hidden size for the
  first, intermediate size for the second); tiles where BLOCK_N or the SMs are not known. Compared
  at equal steps only: a wave of another tiling is another wave.

The busiest rank of a layer has the largest amount; among equals, the most active experts, then
tokens. A step waits for it. A fair router gives each token any top-k distinct experts, all equally
probable; its amount is the mean over draws of it, with the same tokens, placement and kernel.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from core.recorder.gatescope_recorder.kernel import Kernel
from core.routing.gatelog import GateLog
from core.stats.arrays import Floats, Ints

DRAWS = 1 << 13  # loads of experts that a fair router's mean rests on
EXACT = 1 << 16  # below it, sums over a rank's experts are exact in float32


@dataclass(frozen=True, slots=True)
class Work:
    """Each [steps, layers, ranks], or of the busiest rank [steps, layers]. None: the kernel's
    tiling does not say."""

    tokens: Floats  # (token, expert) pairs
    active: Floats
    tiles: Floats | None = None
    padded: Floats | None = None  # rows that are computed for no token
    first_waves: Floats | None = None  # of the GEMM of gate and up
    second_waves: Floats | None = None
    amount: Floats | None = None

    def busiest(self) -> Work:
        """Of each layer's busiest rank."""
        order = (self.amount, self.active, self.tokens)
        is_one = self.tokens.shape[-1] == 1
        place = None if is_one else _largest([v.T for v in order if v is not None])[None]
        known: dict[str, Any] = {
            field.name: values[..., 0]
            if place is None
            else np.take_along_axis(values.T, place, 0)[0].T
            for field in fields(self)
            if (values := getattr(self, field.name)) is not None
        }
        return Work(**known)


def of_steps(
    loads: npt.NDArray[Any], tokens: Ints, placement: Sequence[int], kernel: Kernel | None
) -> Work:
    """The work of `loads` [steps, layers, experts] in steps of `tokens` [steps]. `placement[e]` is
    the rank of expert e; empty: one rank has them all, or a slice of each."""
    kind = np.float32 if int(loads.max(initial=0)) < EXACT else np.float64
    by_expert = loads.transpose(2, 1, 0)  # as a gate log stores it
    x: npt.NDArray[Any] = np.ascontiguousarray(by_expert, kind)
    home = _home(placement, len(x)).astype(kind)
    rows, active = _by_rank(home, x), _by_rank(home, x > 0)
    if kernel is None or not kernel.tilings:
        return Work(rows, active)
    block_m, block_n = _blocks(kernel, tokens)
    tiles = _by_rank(home, np.ceil(x / block_m.astype(kind)))
    padded = tiles * block_m[:, None, None] - rows
    return _with_waves(Work(rows, active, tiles, padded), kernel, tiles, block_n)


def _with_waves(done: Work, kernel: Kernel, tiles: Floats, block_n: Floats) -> Work:
    if not kernel.sms or not block_n.all() or not all(kernel.columns):
        return replace(done, tiles=tiles, amount=tiles)
    first, second = (
        np.ceil(tiles * np.ceil(columns / block_n[:, None, None]) / kernel.sms)
        for columns in kernel.columns
    )
    amount = np.asarray(first * kernel.columns[1] + second * kernel.columns[0] / 2)
    return replace(done, tiles=tiles, first_waves=first, second_waves=second, amount=amount)


def most_woken(done: Work, kernel: Kernel, tokens: Ints, rows: Ints) -> Work:
    """`done` [steps, layers, ranks] with as many idle experts as `rows` [steps] of padding can
    wake, for one tile each. They hold what was left of earlier steps: in 6 natural runs on an H200
    they woke from none to all of the idle experts, by no rule (bench/backends/woken.py)."""
    if not rows.any() or not kernel.experts:
        return done
    woken = np.minimum(kernel.local_experts - done.active, (rows * kernel.top_k)[:, None, None])
    more = replace(done, active=done.active + woken)
    if done.tiles is None:
        return more
    return _with_waves(more, kernel, done.tiles + woken, _blocks(kernel, tokens)[1])


def _home(placement: Sequence[int], experts: int) -> Floats:
    """[ranks, experts]: 1 where a rank has an expert."""
    if not placement:
        return np.ones((1, experts))
    return np.asarray(np.arange(max(placement) + 1)[:, None] == np.asarray(placement), np.float64)


def _by_rank(home: npt.NDArray[Any], by_expert: npt.NDArray[Any]) -> Floats:
    """[steps, layers, ranks]: the sum of [experts, layers, steps] over each rank's experts."""
    flat = by_expert.reshape(len(by_expert), -1).astype(home.dtype, copy=False)
    totals = flat.sum(axis=0) if len(home) == 1 else home @ flat
    summed = totals.reshape(-1, *by_expert.shape[1:])
    return np.asarray(summed.transpose(2, 1, 0), np.float64)


def _blocks(kernel: Kernel, tokens: Ints) -> tuple[Floats, Floats]:
    """BLOCK_M and BLOCK_N of steps of `tokens`, each [steps]."""
    edges = [tiling.tokens for tiling in kernel.tilings]
    place = np.minimum(np.searchsorted(edges, tokens), len(edges) - 1)
    table = np.array([(tiling.block_m, tiling.block_n) for tiling in kernel.tilings], np.float64)
    return table[place, 0], table[place, 1]


def _largest(measures: Sequence[Floats]) -> Ints:
    """The place on the first axis that is largest by the first measure; among equals by the
    next."""
    best = np.ones(measures[0].shape, bool)
    for measure in measures:
        among = np.where(best, measure, -1.0)
        best = among == among.max(axis=0)
    return np.asarray(best.argmax(axis=0))


def of_busiest(log: GateLog) -> Work:
    """Of each layer's busiest rank in the steps of a log, [steps, layers]. Zeros where EPLB moves
    experts: then a rank's own are not known."""
    if log.moved:
        none = np.zeros(log.loads.shape[:2])
        return Work(none, none)
    return of_steps(log.loads, log.tokens, log.placement, log.kernel).busiest()


# --- a fair router ---


def fair(log: GateLog) -> Floats:
    """[steps]: as `fair_amounts`; zeros where the log's kernel has no tiling."""
    if log.kernel is None or not log.kernel.tilings or log.moved:
        return np.zeros(len(log.tokens))
    experts = log.loads.shape[2]
    return fair_amounts(log.tokens, experts, int(log.top_k), log.placement, log.kernel)


def fair_amounts(
    tokens: Ints, experts: int, top_k: int, placement: tuple[int, ...], kernel: Kernel
) -> Floats:
    """[steps]: the busiest rank's amount in a layer under a fair router, in steps of `tokens`."""
    sizes, place = np.unique(tokens, return_inverse=True)
    each = [_fair_amount(int(size), experts, top_k, placement, kernel) for size in sizes]
    return np.array(each, np.float64)[place]


@functools.lru_cache(maxsize=1 << 14)
def _fair_amount(
    tokens: int, experts: int, top_k: int, placement: tuple[int, ...], kernel: Kernel
) -> float:
    drawn = fair_loads(tokens, experts, top_k, max(64, DRAWS // experts))[:, None]
    amount = of_steps(drawn, np.full(len(drawn), tokens), placement, kernel).busiest().amount
    return float(np.mean(amount)) if amount is not None else np.nan


def fair_loads(tokens: int, experts: int, top_k: int, draws: int) -> Ints:
    """[draws, experts] of a fair router; exact. Seeded by `tokens`.

    Expert by expert: a token that has j experts left to choose, among m that are left, chooses the
    next one with probability j/m.
    """
    random = np.random.default_rng(tokens)
    left = np.zeros((top_k + 1, draws), np.int64)  # tokens, by experts that they have left
    left[top_k] = tokens
    loads = np.empty((draws, experts), np.int64)
    for expert in range(experts):
        chance = np.arange(1, top_k + 1)[:, None] / (experts - expert)
        chose = random.binomial(left[1:], np.minimum(chance, 1.0))
        loads[:, expert] = chose.sum(axis=0)
        left[1:] -= chose
        left[:-1] += chose
    return loads
