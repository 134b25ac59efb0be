"""A fair router is rarely said to be skewed, whatever its tokens depend on, and a skewed one is
found: the cases of bench/analysis/null.py with fewer repeats."""

from __future__ import annotations

import pytest

from bench.analysis import null

REPEATS = 40
AT_MOST = 5  # of 40: a true 5 % shows more once in 100 times


@pytest.mark.parametrize("name", [n for n in null.FAIR if "dummy" not in n])
def test_fair_routers_show_no_excess(name: str) -> None:
    found = null.rates(null.FAIR[name], 8, REPEATS)
    assert found.per_step * REPEATS <= AT_MOST
    assert found.aggregated * REPEATS <= AT_MOST
    assert abs(found.squared) < 0.02  # the floor is right: floor² is 0.1 and less


@pytest.mark.parametrize("experts", null.SIZES)
def test_dummy_batches_never_show_one(experts: int) -> None:
    found = null.rates(null.FAIR["dummy batches of one token"], experts, REPEATS)
    assert (found.per_step, found.aggregated) == (0, 0)


@pytest.mark.parametrize("name", null.SKEWED)
def test_an_excess_of_0_3_is_found(name: str) -> None:
    found = null.rates(null.SKEWED[name], 8, 10)
    assert (found.per_step, found.aggregated) == (1, 1)
    assert found.squared == pytest.approx(0.09, rel=0.05)
