"""The histogram as one Triton kernel: one program per layer zeroes its bins, counts its rows and
resets them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 1024


@triton.jit(do_not_specialize=["n"])  # type: ignore[untyped-decorator]  # Triton is untyped
def _count(  # type: ignore[no-untyped-def]
    ids, counts, n, layer_stride, EXPERTS: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr
):
    layer = tl.program_id(0).to(tl.int64)
    ids += layer * layer_stride
    counts += layer * (EXPERTS + 1)
    bins = tl.arange(0, BINS)
    tl.store(counts + bins, tl.zeros((BINS,), tl.int32), mask=bins <= EXPERTS)
    tl.debug_barrier()  # this program's atomics come after its zeroes
    for start in range(0, n, BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < n
        chosen = tl.load(ids + place, mask=inside, other=EXPERTS)
        is_expert = (chosen >= 0) & (chosen < EXPERTS)
        tl.atomic_add(counts + tl.where(is_expert, chosen, EXPERTS), 1, mask=inside)
        tl.store(ids + place, EXPERTS, mask=inside)


def count(ids: torch.Tensor, counts: torch.Tensor, tokens: int) -> None:
    """Count the first `tokens` rows of `ids` [layers, rows, top_k] into `counts` [layers, experts +
    1], and reset these rows."""
    layers, _, top_k = ids.shape
    experts = counts.shape[1] - 1
    _count[(layers,)](
        ids,
        counts,
        tokens * top_k,
        ids.stride(0),
        EXPERTS=experts,
        BINS=triton.next_power_of_2(experts + 1),
        BLOCK=BLOCK,
    )
