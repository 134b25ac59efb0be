"""The work of recorded steps as the cost model takes it: of the busiest rank of each layer, summed
over layers; the same for a fair router with the same tokens; and the most that it can have been:
what rows of padding chose is in no log.

With a price list, the busiest rank is the one with the highest price. The price of a step splits
into `waiting` (the busiest rank's over the mean rank's), `weights` (active experts of the mean
rank) and the rest, which is fixed costs and waves.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from core.errors import FileError
from core.recorder.gatescope_recorder.kernel import Kernel
from core.routing import work
from core.routing.gatelog import GateLog
from core.routing.price import Prices
from core.stats.arrays import Bools, Floats, Ints

FIGURES = ("active", "rows", "tiles", "amount", "price_us", "waiting_us", "weights_us")
COLUMNS = tuple(f"{kind}{name}" for kind in ("", "fair_", "most_") for name in FIGURES)
FAIR_DRAWS = 256


def columns(log: GateLog, prices: Prices | None, padding: Ints) -> Floats:
    """[steps, COLUMNS]; nan where unknown. Under EPLB a rank's active experts are in no log.
    `padding` [steps]: rows that route as they like."""
    if log.moved:
        return np.full((len(log.tokens), len(COLUMNS)), np.nan)
    kernel, experts = prices.kernel if prices else log.kernel, log.loads.shape[2]
    if prices and prices.kernel.experts != experts:
        raise FileError(
            f"a price list of a kernel with {prices.kernel.experts} experts, and a gate log with"
            f" {experts}: calibrate the backend that wrote the log"
        )
    mine = most = of_loads(log.loads, log.tokens, log.placement, kernel, prices).sum(axis=1)
    if padding.any():
        padded = of_loads(log.loads, log.tokens, log.placement, kernel, prices, padding)
        most = padded.sum(axis=1)
    layers = log.loads.shape[1]
    fair = fair_of(log.tokens, experts, log.top_k, log.placement, kernel, prices)
    return np.hstack([mine, layers * fair, most])


def of_loads(
    loads: np.typing.NDArray[np.generic],
    tokens: Ints,
    placement: Sequence[int],
    kernel: Kernel | None,
    prices: Prices | None,
    padding: Ints | None = None,
) -> Floats:
    """[steps, layers, FIGURES] of `loads` [steps, layers, experts]; with `padding` [steps], the
    most that it can be with so many rows more."""
    done = work.of_steps(loads, tokens, placement, kernel)
    if kernel and padding is not None:
        done = work.most_woken(done, kernel, tokens, padding)
    busiest = done.busiest()
    unknown = np.full(busiest.active.shape, np.nan)
    known = [busiest.active, busiest.tokens, busiest.tiles, busiest.amount]
    figures = [unknown if values is None else values for values in known]
    if prices is None:
        return np.stack([*figures, unknown, unknown, unknown], axis=-1)
    parts = prices.parts_us(done, tokens)  # [steps, layers, ranks, PARTS]
    by_rank = parts.sum(axis=-1)
    price = by_rank.max(axis=-1)
    waiting, weights = price - by_rank.mean(axis=-1), parts[..., 1].mean(axis=-1)
    return np.stack([*figures, price, waiting, weights], axis=-1)


def has_blocks(kernel: Kernel | None, tokens: Ints, blocks: str) -> Bools:
    """[steps]: whether a step of `tokens` [steps] runs the tiling "64x128"."""
    sizes, place = np.unique(tokens, return_inverse=True)
    found = [kernel.tiling(int(size)) if kernel else None for size in sizes]
    return np.array([t is not None and f"{t.block_m}x{t.block_n}" == blocks for t in found])[place]


def fair_of(
    tokens: Ints,
    experts: int,
    top_k: int,
    placement: tuple[int, ...],
    kernel: Kernel | None,
    prices: Prices | None,
) -> Floats:
    """[steps, FIGURES]: their means in one layer, under a fair router, in steps of `tokens`."""
    sizes, place = np.unique(tokens, return_inverse=True)
    each = [_fair(int(size), experts, top_k, placement, kernel, prices) for size in sizes]
    return np.array(each).reshape(-1, len(FIGURES))[place]


@lru_cache(maxsize=1 << 14)
def _fair(
    tokens: int,
    experts: int,
    top_k: int,
    placement: tuple[int, ...],
    kernel: Kernel | None,
    prices: Prices | None,
) -> Floats:
    drawn = work.fair_loads(tokens, experts, top_k, FAIR_DRAWS)[:, None]
    sizes = np.full(len(drawn), tokens)
    figures = of_loads(drawn, sizes, placement, kernel, prices)
    return np.asarray(figures.mean(axis=(0, 1)))
