"""vLLM's Triton MoE kernel: step sizes that between them have all its variants compiled."""

from __future__ import annotations

# Batch sizes of vLLM's tables of tuned settings, most of which end at 4096; a step takes those of
# the nearest size.
TUNED = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 1536, 2048, 3072, 4096, 8192)
DIVISOR = 16  # Triton compiles a variant for an argument that this divides, and one for the others


def step_sizes(most: int, experts: int, top_k: int) -> tuple[int, ...]:
    """For each variant of the kernel the largest step, in tokens up to `most`, that runs it;
    ascending.

    A variant is a tuned size (where a table gives two sizes the same settings, one of them is in
    vain) and which arguments 16 divides: the assignments, top-k × tokens, and these padded to whole
    blocks for each expert, assignments + experts × (block − 1), where 16 divides the block (vLLM's
    `moe_align_block_size`; fewer assignments than experts are padded otherwise). The largest, since
    CUDA graphs hold small ones ready.
    """

    def variant(tokens: int) -> tuple[int, bool, bool]:
        assignments = tokens * top_k
        nearest = min(TUNED, key=lambda tuned: abs(tuned - tokens))
        return nearest, assignments % DIVISOR == 0, (assignments - experts) % DIVISOR == 0

    return tuple(
        sorted({variant(tokens): tokens for tokens in range(1, min(most, TUNED[-1]) + 1)}.values())
    )
