"""BLOCK_M of a kernel that does not publish its tiling, fitted to step times at one step size.

time = a + b · active experts + c · tokens of the busiest rank + d · the largest load + e · √Σx²
+ f · tiles(BLOCK_M), each summed over layers. For every candidate, a power of two, the Gaussian
likelihood is maximised over a to f and the noise (its profile); f must be positive. A block is
found if its log likelihood exceeds that of the model without tiles far enough, and twice as far as
any other block's does. Otherwise there is none, with a reason: where time is smooth in the loads,
or no load crosses a block's edge, nothing can be fitted.

Steps with the same loads count once, with their mean time: looping answers repeat a few load
vectors for hundreds of steps. How often a block is found, missed or mistaken is tried in
bench/analysis/block_fit.py, by simulation and on a kernel whose blocks are known.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from core.recorder.gatescope_recorder.kernel import Kernel, Tiling
from core.routing import work
from core.routing.gatelog import Counts
from core.stats.arrays import Floats

BLOCKS = (8, 16, 32, 64, 128, 256)
MIN_LOADS = 30  # different ones
BEST = 24.0  # 2 · log likelihood over the model without tiles: waves and caches are not in it
CLEAR = 2.0  # times as much as any other block: a block near the right one explains a part too


@dataclass(frozen=True, slots=True)
class Fitted:
    """`kernel`: with the block found, marked as fitted; None with a `reason`."""

    kernel: Kernel | None
    reason: str = ""


def fit(
    kernel: Kernel,
    loads: Counts,
    tokens: int,
    times: Floats,
    placement: tuple[int, ...] = (),
) -> Fitted:
    """From `loads` [steps, layers, experts] of steps of `tokens` that took `times` [steps]."""
    vectors, means = _distinct(loads, times)
    if len(means) < MIN_LOADS:
        few = f"n = {len(means)} different loads in steps of {tokens} tokens"
        return Fitted(None, f"{few}, {MIN_LOADS} are needed")
    gains = {
        block: _gain(_with(kernel, tokens, block), vectors, tokens, means, placement)
        for block in BLOCKS
    }
    best = max(gains, key=gains.__getitem__)
    if gains[best] < BEST:
        return Fitted(None, f"no block explains the times of steps of {tokens} tokens")
    alike = [block for block in BLOCKS if gains[block] * CLEAR > gains[best]]
    if len(alike) > 1:
        return Fitted(None, f"blocks of {' and '.join(map(str, alike))} explain the times alike")
    return Fitted(_with(kernel, tokens, best))


def _distinct(loads: Counts, times: Floats) -> tuple[Counts, Floats]:
    """Each load vector once, and its mean time."""
    flat, place = np.unique(loads.reshape(len(loads), -1), axis=0, return_inverse=True)
    means = np.bincount(place.ravel(), times) / np.bincount(place.ravel())
    return flat.reshape(-1, *loads.shape[1:]).astype(np.int64), means


def _with(kernel: Kernel, tokens: int, block: int) -> Kernel:
    return replace(kernel, tilings=(Tiling(tokens, block),), source="fitted", table="")


def _gain(
    kernel: Kernel,
    loads: Counts,
    tokens: int,
    times: Floats,
    placement: tuple[int, ...],
) -> float:
    """Twice the log likelihood that tiles add; 0 where a tile would save time."""
    done = work.of_steps(loads, np.full(len(times), tokens), placement, kernel).busiest()
    smooth = (done.active, done.tokens, loads.max(axis=2), np.sqrt((loads * loads).sum(axis=2)))
    plain = np.column_stack([np.ones(len(times)), *map(_sum, smooth)])
    assert done.tiles is not None
    whole = np.column_stack([plain, _sum(done.tiles)])
    (without, _), (left, slope) = _residual(plain, times), _residual(whole, times)
    return len(times) * float(np.log(without / left)) if slope > 0 else 0.0


def _sum(values: Floats) -> Floats:
    return np.asarray(values.sum(axis=1))


def _residual(design: Floats, times: Floats) -> tuple[float, float]:
    """Σ of squares that are left, and the last coefficient."""
    found = np.linalg.lstsq(design, times, rcond=None)[0]
    left = times - design @ found
    floor = 1e-12 * float(times @ times)  # of an exact fit
    return max(float(left @ left), floor), float(found[-1])
