"""Times the MoE kernel alone: one layer's fused experts, at the model's shapes, for many step sizes
and load vectors. What it writes is a price list (core/routing/price.py reads it).

A program of its own, for the interpreter that has vLLM, before its server takes the GPU:

    PYTHONPATH=core/recorder python3 -m gatescope_recorder.kernel_times --experts 8 --top-k 2 \
        --hidden 4096 --inter 14336 --largest 512 --out prices.json

Each time is the median of replays of a CUDA graph that holds several calls. Several copies of the
weights take turns where one would fit into the GPU's L2 cache: in a server, the layers do.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from . import kernel
from .kernel import Tiling

Ints = npt.NDArray[np.int64]

GRID = (8, 16, 32, 64, 128, 256, 512, 24, 48, 96, 192, 384, 1024, 1, 4, 224, 768, 2048, 4096, 8192)
CALLS, REPLAYS = 4, 12
COLD_BYTES = 256 << 20  # several times the L2 cache of any GPU so far


@dataclass(frozen=True, slots=True)
class Shape:
    """One rank's part of an MoE layer: the first `local` of `experts` experts, each with `inter`
    columns of its intermediate layer."""

    experts: int
    local: int
    top_k: int
    hidden: int
    inter: int


# --- what is timed: no GPU needed ---


def load_vectors(tokens: int, shape: Shape, block: int, seed: int = 0) -> list[Ints]:
    """Loads [experts] of one step that separate active experts, waves and the rank's share: even,
    fair, few active experts, hot ones, and loads just beyond and below the edge of a tile."""
    draw = np.random.default_rng([seed, tokens])
    found = [even(tokens, shape, range(shape.experts))]
    found += [_drawn(draw, tokens, shape, np.zeros(shape.experts)) for _ in range(3)]
    found += [even(tokens, shape, active) for active in _few(shape)]
    for heat in (0.7, 1.5, 3.0):
        for hot in sorted({1, 2, shape.experts // 2}):
            weights = np.zeros(shape.experts)
            weights[draw.choice(shape.experts, hot, replace=False)] = heat
            found.append(_drawn(draw, tokens, shape, weights))
    found += [_nudged(found[0], shift) for shift in (1, max(2, block // 8), max(3, block // 2))]
    if shape.local < shape.experts:
        for heat in (-3.0, -1.0, 1.0, 3.0):  # the other ranks' experts, or this one's
            weights = np.zeros(shape.experts)
            weights[: shape.local] = heat
            found.append(_drawn(draw, tokens, shape, weights))
    whole = [x for x in found if x.min() >= 0 and x.max() <= tokens]
    return [np.array(x) for x in dict.fromkeys(tuple(int(n) for n in x) for x in whole)]


def even(tokens: int, shape: Shape, active: Sequence[int]) -> Ints:
    """The same load for each of the `active` experts, to within one."""
    loads = np.zeros(shape.experts, np.int64)
    share, more = divmod(tokens * shape.top_k, len(active))
    loads[list(active)] = share
    loads[list(active)[:more]] += 1
    return loads


def _few(shape: Shape) -> Iterator[range]:
    """The first experts, fewer and fewer."""
    counts = {shape.experts * part // 8 for part in (1, 2, 3, 4, 5, 6, 7)} | {shape.top_k}
    for count in sorted(counts):
        if shape.top_k <= count < shape.experts:
            yield range(count)


def _drawn(
    draw: np.random.Generator, tokens: int, shape: Shape, weights: npt.NDArray[np.float64]
) -> Ints:
    """Each token draws distinct experts by Gumbel top-k."""
    keys = weights + draw.gumbel(size=(tokens, shape.experts))
    chosen = np.argpartition(-keys, shape.top_k - 1, axis=1)[:, : shape.top_k]
    return np.asarray(np.bincount(chosen.ravel(), minlength=shape.experts))


def _nudged(loads: Ints, shift: int) -> Ints:
    """Half of the experts `shift` tokens more, the others as many less."""
    pairs = len(loads) // 2
    moved = np.array([shift, -shift] * pairs + [0] * (len(loads) - 2 * pairs))
    return np.asarray(loads + moved)


def assigned(loads: Ints, tokens: int, seed: int = 0) -> Ints:
    """Expert ids [tokens, top_k], distinct in each row, of which expert e gets exactly `loads[e]`.
    No load may exceed `tokens`."""
    pool = np.repeat(np.arange(len(loads)), loads)  # rows lie `tokens` apart, so no id repeats
    ids = pool.reshape(-1, tokens).T
    return np.asarray(np.random.default_rng(seed).permutation(ids))


def sizes(largest: int, tilings: Sequence[Tiling]) -> list[int]:
    """Step sizes to time, the most useful first: a grid, and the first and last size of each
    tiling, since prices are interpolated within one tiling only."""
    ends = [end for one in tilings for end in (one.tokens, one.tokens + 1)]
    wanted = [*GRID, largest, *(size for size in ends if size > GRID[0])]
    return [size for size in dict.fromkeys(wanted) if 0 < size <= largest]


# --- timing: inside vLLM's environment ---


class FusedExperts:
    """vLLM's fused experts with random weights on the current GPU."""

    def __init__(self, shape: Shape) -> None:
        import torch
        from vllm.model_executor.layers.fused_moe import fused_moe

        self.shape, self._torch, self._moe = shape, torch, fused_moe
        one = 3 * shape.local * shape.inter * shape.hidden * 2
        copies = min(16, math.ceil(COLD_BYTES / one))
        first = (shape.local, 2 * shape.inter, shape.hidden)
        second = (shape.local, shape.hidden, shape.inter)
        self.weights = [(self._normal(first), self._normal(second)) for _ in range(copies)]
        self._more: dict[str, Any] = {}
        if shape.local < shape.experts:
            where = torch.full((shape.experts,), -1, dtype=torch.int32, device="cuda")
            where[: shape.local] = torch.arange(shape.local, dtype=torch.int32, device="cuda")
            self._more = {"global_num_experts": shape.experts, "expert_map": where}

    def _normal(self, size: tuple[int, ...]) -> Any:
        made = self._torch.empty(size, dtype=self._torch.bfloat16, device="cuda")
        return made.normal_(0, 0.02)

    def blocks(self, tokens: int) -> tuple[int, int]:
        """BLOCK_M and BLOCK_N that the kernel takes at this step size, by its own function."""
        w1, w2 = self.weights[0]
        found = self._moe.try_get_optimal_moe_config(
            w1.size(), w2.size(), self.shape.top_k, None, tokens
        )
        return int(found["BLOCK_SIZE_M"]), int(found["BLOCK_SIZE_N"])

    @property
    def source(self) -> str:
        """As in `Kernel`: whether vLLM has a table of tuned settings for this shape and GPU."""
        try:
            table = self._moe.get_moe_configs(self.shape.local, self.shape.inter, None)
        except (AttributeError, TypeError):  # a version that keeps it elsewhere
            return ""
        return "default" if table is None else "tuned"

    def time_us(self, loads: Ints, tokens: int) -> float:
        """Median time of one call, in µs."""
        torch, shape = self._torch, self.shape
        ids = torch.tensor(assigned(loads, tokens), dtype=torch.int32, device="cuda")
        mix = torch.full((tokens, shape.top_k), 1 / shape.top_k, device="cuda")
        x = torch.randn(tokens, shape.hidden, dtype=torch.bfloat16, device="cuda") * 0.1
        calls = max(CALLS, len(self.weights))

        def run() -> None:
            for call in range(calls):
                w1, w2 = self.weights[call % len(self.weights)]
                self._moe.fused_experts(x, w1, w2, mix, ids, **self._more)

        return self._replayed(run) / calls

    def _replayed(self, run: Callable[[], None]) -> float:
        torch = self._torch
        run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        took = []
        for _ in range(REPLAYS):
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            took.append(start.elapsed_time(end) * 1e3)
        return float(np.median(took))


def price_list(shape: Shape, largest: int, budget_s: float) -> dict[str, Any]:
    """The price list of this GPU. Sizes that the budget, in s, has no room for are left out."""
    import torch
    import vllm

    began, experts = time.monotonic(), FusedExperts(shape)
    device = torch.cuda.get_device_properties(0)
    ran = kernel.Kernel(
        name="triton",
        dtype="bfloat16",
        sms=device.multi_processor_count,
        experts=shape.experts,
        local_experts=shape.local,
        top_k=shape.top_k,
        columns=(2 * shape.inter, shape.hidden),
        tilings=kernel.tilings(experts.blocks, largest),
        source=experts.source,
    )
    timed: dict[int, dict[str, Any]] = {}
    for tokens in sizes(largest, ran.tilings):
        if time.monotonic() - began > budget_s:
            break
        block_m, _ = experts.blocks(tokens)
        vectors = load_vectors(tokens, shape, block_m)
        took = [experts.time_us(loads, tokens) for loads in vectors]
        mine = [loads[: shape.local].tolist() for loads in vectors]
        timed[tokens] = {"tokens": tokens, "loads": mine, "us": took}
        print(f"{tokens} tokens: {min(took):.0f} to {max(took):.0f} µs", flush=True)
    return {
        "gpu": device.name,
        "engine": f"vllm {vllm.__version__}",
        "kernel": asdict(ran),
        "sizes": [timed[tokens] for tokens in sorted(timed)],
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    """Measure, and write the list to --out: whole, or not at all."""
    options = _parsed()
    shape = Shape(
        options.experts,
        options.local or options.experts,
        options.top_k,
        options.hidden,
        options.inter,
    )
    found = price_list(shape, options.largest, options.budget_s)
    temporary = options.out.with_name(options.out.name + ".tmp")
    temporary.write_text(json.dumps(found, separators=(",", ":")) + "\n")
    os.replace(temporary, options.out)


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="kernel_times", description=(__doc__ or "").split("\n\n")[0]
    )
    for name in ("experts", "top-k", "hidden", "inter"):
        parser.add_argument(f"--{name}", type=int, required=True, metavar="N")
    parser.add_argument("--local", type=int, metavar="N", help="experts of one rank (default: all)")
    parser.add_argument("--largest", type=int, default=512, metavar="TOKENS")
    parser.add_argument("--budget-s", type=float, default=150.0, metavar="S")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
