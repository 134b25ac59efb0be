"""A kernel's block, fitted to step times: found where it shows, and never where nothing does."""

from __future__ import annotations

import numpy as np
import pytest

from core.analysis import fitted_block
from core.recorder.gatescope_recorder.kernel import Kernel, Tiling
from core.stats.arrays import Floats, Ints

KERNEL = Kernel("FLASHINFER_CUTLASS", sms=132, columns=(28672, 4096))


def skewed(tokens: int, steps: int = 200, seed: int = 0) -> Ints:
    """[steps, 2, 8]: top-2 of 8 experts, one of them hot to a changing degree."""
    rng = np.random.default_rng(seed)
    keys = rng.gumbel(size=(steps, 2, tokens, 8))
    keys[..., 0] += 1 + np.sin(np.linspace(0, 12, steps))[:, None, None]
    chosen = keys.argsort(axis=-1)[..., -2:]
    return np.asarray((chosen[..., None] == np.arange(8)).sum(axis=(2, 3)))


def noisy(times: Floats) -> Floats:
    return times * np.random.default_rng(1).normal(1, 0.003, len(times))


@pytest.mark.parametrize(("tokens", "block"), [(32, 16), (128, 64), (256, 128)])
def test_the_block_is_found_and_marked_as_fitted(tokens: int, block: int) -> None:
    loads = skewed(tokens)
    tiles = np.ceil(loads / block).sum(axis=(1, 2))
    found = fitted_block.fit(KERNEL, loads, tokens, noisy(2000 + 40.0 * tiles))
    assert found.kernel
    assert found.kernel.tilings == (Tiling(tokens, block),)
    assert (found.kernel.source, found.kernel.name) == ("fitted", "FLASHINFER_CUTLASS")


def test_the_busiest_ranks_tiles_count() -> None:
    loads = skewed(128)
    tiles = np.ceil(loads / 64).reshape(-1, 2, 2, 4).sum(axis=3).max(axis=2).sum(axis=1)
    times = noisy(2000 + 40.0 * tiles)
    found = fitted_block.fit(KERNEL, loads, 128, times, (0, 0, 0, 0, 1, 1, 1, 1))
    assert found.kernel
    assert found.kernel.tilings[0].block_m == 64


def test_a_smooth_kernel_has_none() -> None:
    """Times in proportion to tokens, to the hottest expert, and to active experts."""
    loads = skewed(128)
    active, hottest = (loads > 0).sum(axis=(1, 2)), loads.max(axis=2).sum(axis=1)
    for times in (2000 + 80.0 * active, 2000 + 3.0 * hottest):
        found = fitted_block.fit(KERNEL, loads, 128, noisy(times))
        assert found.kernel is None
        assert found.reason == "no block explains the times of steps of 128 tokens"


def test_loads_that_fit_into_any_block_say_nothing() -> None:
    found = fitted_block.fit(KERNEL, skewed(8), 8, noisy(np.linspace(900, 1000, 200)))
    assert found.kernel is None


def test_repeated_loads_count_once() -> None:
    """Looping answers: 20 load vectors, ten times each, are 20 points and not 200."""
    loads = np.tile(skewed(128, 20), (10, 1, 1))
    tiles = np.ceil(loads / 64).sum(axis=(1, 2))
    found = fitted_block.fit(KERNEL, loads, 128, noisy(2000 + 40.0 * tiles))
    assert found.kernel is None
    assert found.reason == "n = 20 different loads in steps of 128 tokens, 30 are needed"


def test_blocks_that_explain_the_times_alike_are_not_chosen_between() -> None:
    """Every load is a full block of 64 or a half one: blocks of 32 count as well as those of 64."""
    rng = np.random.default_rng(2)
    loads = rng.choice([0, 32, 33, 64, 65, 96], size=(200, 2, 8))
    loads[..., 7] = 1024 - loads[..., :7].sum(axis=-1)
    both = np.ceil(loads / 32).sum(axis=(1, 2)) + np.ceil(loads / 64).sum(axis=(1, 2))
    found = fitted_block.fit(KERNEL, loads, 512, noisy(2000 + 20.0 * both))
    assert found.kernel is None
    assert found.reason.endswith("32 and 64 explain the times alike")
