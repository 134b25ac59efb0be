"""The MoE kernel of a server and the tiles that it computes, as the gate log's header and run.json
keep them.

A kernel sorts a step's rows by expert and computes tiles of BLOCK_M rows of one expert ×
BLOCK_N columns of a GEMM; the GPU's multiprocessors (SMs) take them wave by wave. Which block sizes
it takes depends on the step's tokens.

This module runs inside vLLM's workers too: standard library only.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

Blocks = tuple[int, int]  # BLOCK_M and BLOCK_N


@dataclass(frozen=True, slots=True)
class Tiling:
    """The blocks in steps of up to `tokens` tokens, from the next smaller tiling's on.
    `block_n` 0: unknown."""

    tokens: int
    block_m: int
    block_n: int = 0


@dataclass(frozen=True, slots=True)
class Kernel:
    """What one rank runs. 0, or empty: unknown.

    `tilings`, ascending, apply by the tokens of a step of all data-parallel ranks; the last one
    also to larger steps. `graphs`, ascending: rows of all ranks that CUDA graphs pad a step to;
    larger steps are as they are. `source` says where tilings come from: "tuned" (vLLM's table, the
    file `table`), "default" (vLLM's rule, where it has no table), or "" (none: the kernel publishes
    no tiling).
    """

    name: str
    dtype: str = ""  # of the weights, such as "bfloat16"
    sms: int = 0
    experts: int = 0  # of the layer: physical ones, all ranks together
    local_experts: int = 0  # whose weights, or slices of them, one rank has
    top_k: int = 0
    columns: tuple[int, int] = (0, 0)  # of the first GEMM (gate and up) and the second, on a rank
    tilings: tuple[Tiling, ...] = ()
    source: str = ""
    table: str = ""
    graphs: tuple[int, ...] = ()

    def padding(self, tokens: int) -> int:
        """Rows that a step of so many tokens has beyond them."""
        place = bisect_left(self.graphs, tokens)
        return self.graphs[place] - tokens if place < len(self.graphs) else 0

    def tiling(self, tokens: int) -> Tiling | None:
        """The one of a step of so many tokens; None if there are none."""
        if not self.tilings:
            return None
        place = bisect_left([one.tokens for one in self.tilings], tokens)
        return self.tilings[min(place, len(self.tilings) - 1)]


def tilings(blocks: Callable[[int], Blocks], most: int) -> tuple[Tiling, ...]:
    """What `blocks` says for every step of 1 to `most` tokens, neighbours that are alike as one."""
    found: list[Tiling] = []
    for tokens in range(1, most + 1):
        block_m, block_n = blocks(tokens)
        if found and (found[-1].block_m, found[-1].block_n) == (block_m, block_n):
            found.pop()
        found.append(Tiling(tokens, block_m, block_n))
    return tuple(found)
