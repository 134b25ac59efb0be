"""What the busiest rank of a layer computes, over the steps of a run (`core.routing.work`)."""

from __future__ import annotations

import msgspec
import numpy as np

from core.recorder.gatescope_recorder.kernel import Kernel
from core.routing.blocks import RunBlocks, StepSums
from core.stats import bootstrap
from core.stats.arrays import Floats
from core.stats.bootstrap import Interval

UNSAID = "the gate log does not name the MoE kernel"
MOVED = "EPLB moves experts from rank to rank"


class BusiestRank(msgspec.Struct, frozen=True, kw_only=True):
    """Means over steps and layers. Without expert parallelism the one rank, or a slice of every
    expert.

    `work_over_fair`: its work over the busiest rank's under a fair router, with the same tokens,
    kernel and placement; 1: nothing is lost or saved. Null with a `reason` where the tiling is not
    known.
    """

    tokens: float | None = None  # (token, expert) pairs
    active_experts: float | None = None
    tiles: float | None = None
    first_waves: float | None = None  # of the GEMM of gate and up
    second_waves: float | None = None
    padded_share: float | None = None  # of the rows that are computed
    work_over_fair: float | None = None
    work_over_fair_interval: Interval | None = None  # 95 %, over blocks of steps
    reason: str | None = None


def of(sums: StepSums, drawn: StepSums, blocks: int, run: RunBlocks) -> BusiestRank:
    """From sums over steps, and those of resamples of `blocks` blocks."""
    if run.is_moved:
        return BusiestRank(reason=MOVED)
    reason = why_unknown(run.kernel)
    rows = sums.busiest_tokens + sums.padded
    over = None if reason else float(sums.amount / sums.fair_amount)
    return BusiestRank(
        tokens=_mean(sums.busiest_tokens, sums),
        active_experts=_mean(sums.active, sums),
        tiles=None if reason else _mean(sums.tiles, sums),
        first_waves=_mean(sums.first_waves, sums) if sums.first_waves else None,
        second_waves=_mean(sums.second_waves, sums) if sums.second_waves else None,
        padded_share=None if reason else float(sums.padded / rows),
        work_over_fair=over,
        work_over_fair_interval=None if over is None else _interval(over, drawn, blocks),
        reason=reason or None,
    )


def why_unknown(kernel: Kernel | None) -> str:
    """Why tiles are not known; empty if they are."""
    if kernel is None:
        return UNSAID
    return "" if kernel.tilings else f"the kernel, {kernel.name}, publishes no tiling"


def in_words(kernel: Kernel | None) -> str | None:
    """`TRITON, tuned (E=8,N=14336,device_name=NVIDIA_H200.json)`; None if the kernel is not
    known."""
    if kernel is None:
        return None
    source = kernel.source or "no published tiling"
    return f"{kernel.name}, {source}" + (f" ({kernel.table})" if kernel.table else "")


def _mean(total: Floats, sums: StepSums) -> float:
    return float(total / sums.layers)


def _interval(over: float, drawn: StepSums, blocks: int) -> Interval | None:
    with np.errstate(divide="ignore", invalid="ignore"):
        return bootstrap.interval(over, drawn.amount / drawn.fair_amount, blocks)
