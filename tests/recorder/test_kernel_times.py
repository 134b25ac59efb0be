"""What the kernel is timed at: loads that can be realised, and that separate active experts from
waves; sizes at the edges of each tiling. The timing itself needs a GPU."""

from __future__ import annotations

import numpy as np
import pytest

from core.recorder.gatescope_recorder import kernel_times
from core.recorder.gatescope_recorder.kernel import Tiling
from core.recorder.gatescope_recorder.kernel_times import Shape

MIXTRAL = Shape(experts=8, local=8, top_k=2, hidden=4096, inter=14336)
QWEN = Shape(experts=128, local=32, top_k=8, hidden=2048, inter=768)


@pytest.mark.parametrize("shape", [MIXTRAL, QWEN])
@pytest.mark.parametrize("tokens", [1, 8, 33, 256])
def test_every_load_vector_can_be_realised(shape: Shape, tokens: int) -> None:
    vectors = kernel_times.load_vectors(tokens, shape, block=16)
    assert len({tuple(x) for x in vectors}) == len(vectors)
    for loads in vectors:
        ids = kernel_times.assigned(loads, tokens)
        assert ids.shape == (tokens, shape.top_k)
        assert (np.diff(np.sort(ids, axis=1), axis=1) > 0).all()  # distinct experts of a token
        assert np.bincount(ids.ravel(), minlength=shape.experts).tolist() == loads.tolist()


@pytest.mark.parametrize("tokens", [32, 64, 128, 256])
def test_active_experts_and_tiles_are_not_each_other(tokens: int) -> None:
    vectors = np.array(kernel_times.load_vectors(tokens, MIXTRAL, block=64))
    active, tiles = (vectors > 0).sum(axis=1), np.ceil(vectors / 64).sum(axis=1)
    assert set(active) >= {2, 3, 4, 5, 6, 7, 8}
    if tokens >= 128:  # a tile holds all of an expert's tokens before
        assert np.corrcoef(active, tiles)[0, 1] < 0.9


def test_an_expert_parallel_rank_is_timed_from_idle_to_busiest() -> None:
    shape = Shape(experts=8, local=2, top_k=2, hidden=4096, inter=14336)
    share = np.array([x[:2].sum() / 256 for x in kernel_times.load_vectors(128, shape, 64)])
    assert share.min() < 0.05
    assert share.max() > 0.9


def test_both_ends_of_each_tiling_are_timed() -> None:
    tilings = [Tiling(12, 16, 64), Tiling(40, 16, 128), Tiling(300, 64, 128)]
    found = kernel_times.sizes(300, tilings)
    assert found[:6] == [8, 16, 32, 64, 128, 256]  # a grid first: time may run out
    assert {12, 13, 40, 41, 300} <= set(found)
    assert max(found) == 300
    assert len(found) == len(set(found))
