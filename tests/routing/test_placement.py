"""Placements: EPLB against its published worked example, and what any placement must keep."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.routing import placement
from core.stats.arrays import Floats

# The example of EPLB's description: 2 layers, 12 experts, 16 slots, 4 groups, 2 nodes, 8 ranks.
WEIGHT = np.array(
    [
        [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
        [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
    ],
    dtype=float,
)
PUBLISHED = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
]


def ranks_of(slots: np.ndarray, ranks: int) -> list[list[tuple[int, ...]]]:
    """What each rank holds, order aside."""
    return [
        sorted(tuple(sorted(r)) for r in layer.reshape(ranks, -1).tolist())
        for layer in np.asarray(slots)
    ]


def test_the_published_example() -> None:
    assert ranks_of(placement.eplb(WEIGHT, 16, 4, 2, 8), 8) == ranks_of(np.array(PUBLISHED), 8)


def test_packing_by_hand() -> None:
    # 8 → a; 7 → b; 6 → b's load 7 is less than a's 8: b is full; 1 → a
    pack, _ = placement.balanced_packing(np.array([[1.0, 8, 6, 7]]), 2)
    assert pack.tolist() == [[0, 0, 1, 1]]


def test_replicas_go_to_the_most_load_a_copy() -> None:
    copy_of, count = placement.replicate(np.array([[10.0, 6, 1]]), 5)
    assert count.tolist() == [[2, 2, 1]]  # 10 | 6 → 5, 5 | 6 → 5, 5 | 3, 3
    assert copy_of.tolist() == [[0, 1, 2, 0, 1]]


def test_a_linear_placement_is_vllms() -> None:
    loads: Floats = np.arange(8, dtype=np.float64).reshape(1, 1, 8)
    assert placement.linear(1, 8, 4).rank_loads(loads).tolist() == [[[1, 5, 9, 13]]]


def test_numbers_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="12 experts cannot be divided by 5"):
        placement.linear(1, 12, 5)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000), ranks=st.sampled_from([2, 4, 8]), spare=st.sampled_from([0, 1, 2])
)
def test_every_placement_keeps_all_load_and_eplb_is_no_worse_than_linear(
    seed: int, ranks: int, spare: int
) -> None:
    rng = np.random.default_rng(seed)
    weight = np.asarray(rng.pareto(1.5, (3, 16)) + 0.1, dtype=np.float64)
    options = [
        placement.linear(3, 16, ranks),
        placement.packed(weight, ranks),
        placement.replicated(weight, ranks, 16 + spare * ranks),
        placement.replicated(weight, ranks, 16 + spare * ranks, groups=8, nodes=2),
    ]
    for option in options:
        by_rank = option.rank_loads(weight[None])[0]
        assert by_rank.sum(axis=-1) == pytest.approx(weight.sum(axis=-1))
        assert option.share.sum(axis=-1) == pytest.approx(np.ones((3, 16)))
    worst = [float(o.rank_loads(weight[None]).max(axis=-1).mean()) for o in options]
    ideal = float((weight.sum(axis=-1) / ranks).mean())
    assert (
        worst[2] <= worst[0] * (4 / 3) + 1e-9
    )  # greedy packing's bound, against the best of all placements
    assert min(worst) >= ideal - 1e-9
