"""The shape of expert popularity: by hand, and on planted laws."""

from __future__ import annotations

import numpy as np
import pytest

from bench.analysis import popularity as planted
from bench.analysis.popularity import Case
from core.routing import popularity


def test_by_hand() -> None:
    """Σ p² = 0.3, so E Σ p² - 1 = 0.2, and α = (3 / 0.2 - 1) / 4."""
    blocks = np.tile([[1.0, 4, 3, 2]], (8, 1))[:, None, :]
    (found,) = popularity.of_layers(blocks)
    assert found.dirichlet.value == pytest.approx(3.5)
    assert found.dirichlet.interval == pytest.approx((3.5, 3.5))
    s = found.power_law.value
    assert s is not None
    law = popularity.shares(s, 4)
    assert (law**2).sum() == pytest.approx(0.3, abs=1e-5)
    assert found.misfit == pytest.approx(np.abs(law - [0.4, 0.3, 0.2, 0.1]).sum() / 2)


def test_a_power_law_is_itself() -> None:
    for s in (0.2, 1.0, 2.5):
        (found,) = popularity.of_layers(np.tile(1e6 * popularity.shares(s, 64), (9, 1, 1)))
        assert found.power_law.value == pytest.approx(s, abs=1e-4)
        assert found.misfit == pytest.approx(0, abs=1e-4)


def test_few_blocks_and_even_layers_are_said() -> None:
    (few,) = popularity.of_layers(np.ones((7, 1, 4)))
    (even,) = popularity.of_layers(np.ones((8, 1, 4)))
    assert few.power_law.reason == "7 blocks of steps, 8 are needed"
    assert (even.power_law.value, even.misfit) == (None, None)
    assert even.dirichlet.reason == "not told apart from even"


@pytest.mark.parametrize(
    "case",
    [Case(64, 0.3, 300), Case(8, 1.0, 30_000, drift=0.5), Case(64, 0.6, 3000, blocks=8)],
)
def test_intervals_hold_the_planted_law(case: Case) -> None:
    want, laws = planted.truth(case, 5000), [p.power_law for p in planted.found(case, 200)]
    held = [law.interval is not None and law.interval[0] <= want <= law.interval[1] for law in laws]
    assert 183 <= sum(held) <= 198


def test_a_fair_layer_shows_none() -> None:
    shown = [p.power_law.value is not None for p in planted.found(Case(64, 0.0, 300), 200)]
    assert sum(shown) <= 6
