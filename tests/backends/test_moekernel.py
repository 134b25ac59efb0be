"""Step sizes that have every variant of the Triton MoE kernel compiled: by hand, by definition, and
as two H200 did."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from core.backends.moekernel import TUNED, step_sizes

# Steps of more tokens than CUDA graphs hold that took over 1.2 s at TP=2 on two H200, before these
# prompts were sent.
STALLED = (697, 1156, 1626, 2328, 3072, 3197, 5252, 8001)


def arguments(tokens: int, experts: int, top_k: int, block: int) -> tuple[bool, bool]:
    """Which of the kernel's two sizes 16 divides: assignments, and these padded to blocks."""
    assignments = tokens * top_k
    padded = assignments + experts * (block - 1)
    if assignments < experts:
        padded = min(assignments * block, padded)
    return assignments % 16 == 0, padded % 16 == 0


def nearest(tokens: int) -> int:
    return min(TUNED, key=lambda tuned: (abs(tuned - tokens), tuned))


def test_mixtral_by_hand() -> None:
    """Top-2 of 8: 16 divides 2 × tokens where 8 divides tokens, and 2 × tokens − 8 where they are 4
    more than that."""
    sizes = step_sizes(2047, experts=8, top_k=2)
    assert sizes[-9:] == (1276, 1279, 1280, 1788, 1791, 1792, 2040, 2044, 2047)
    assert sizes[:6] == (1, 3, 4, 6, 8, 11)


def test_of_64_experts_top_8_there_are_two_variants_for_each_size() -> None:
    assert step_sizes(4096, experts=64, top_k=8)[-4:] == (3583, 3584, 4095, 4096)


@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (60, 4), (64, 6), (128, 8), (16, 1)])
@given(data=st.data())
def test_no_step_needs_a_variant_that_they_do_not_have(
    experts: int, top_k: int, data: st.DataObject
) -> None:
    most = data.draw(st.integers(1, 8192))
    tokens = data.draw(st.integers(1, most))
    assume(tokens * top_k >= experts)
    block = data.draw(st.sampled_from([16, 32, 64, 128]))
    had = {
        (nearest(size), *arguments(size, experts, top_k, block))
        for size in step_sizes(most, experts, top_k)
    }
    assert (nearest(tokens), *arguments(tokens, experts, top_k, block)) in had


def test_the_steps_that_stalled_on_two_h200_have_a_variant_each_and_all_are_met() -> None:
    def variant(tokens: int) -> tuple[int, bool, bool]:
        return nearest(tokens), *arguments(tokens, 8, 2, 128)

    assert len({variant(tokens) for tokens in STALLED}) == len(STALLED)
    assert {variant(tokens) for tokens in STALLED} <= {
        variant(size) for size in step_sizes(8192, 8, 2)
    }
