from __future__ import annotations

from itertools import pairwise

import pytest

from core.load.schedule import arrivals


def gaps(due: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(due)]


def test_all_at_once() -> None:
    assert arrivals(3, "inf", 0) == [0.0, 0.0, 0.0]


def test_a_constant_rate() -> None:
    assert arrivals(4, 2.0, 0, arrival="constant") == [0.0, 0.5, 1.0, 1.5]


def test_poisson_has_the_mean_and_spread_of_an_exponential_and_is_seeded() -> None:
    due = arrivals(20001, 10.0, 7)
    mean = due[-1] / 20000
    variance = sum((g - mean) ** 2 for g in gaps(due)) / 20000
    assert mean == pytest.approx(0.1, rel=0.03)
    assert variance**0.5 / mean == pytest.approx(1.0, rel=0.03)
    assert due == arrivals(20001, 10.0, 7) != arrivals(20001, 10.0, 8)


@pytest.mark.parametrize("burstiness", [0.25, 4.0])
def test_burstiness_is_the_shape_of_the_gamma_distribution(burstiness: float) -> None:
    due = arrivals(20001, 10.0, 7, burstiness=burstiness)
    mean = due[-1] / 20000
    variance = sum((g - mean) ** 2 for g in gaps(due)) / 20000
    assert mean == pytest.approx(0.1, rel=0.05)
    assert variance / mean**2 == pytest.approx(1 / burstiness, rel=0.08)


def test_a_ramp_grows_the_rate_linearly() -> None:
    due = arrivals(31, 2.0, 0, arrival="constant", ramp_up_s=10.0)
    # 2/s over a ramp of 10 s: t²/10 requests after t seconds, 10 in all; then one each half second.
    assert due[:3] == pytest.approx([0.0, 10**0.5, 20**0.5])
    assert due[10] == pytest.approx(10.0)
    assert gaps(due[10:]) == pytest.approx([0.5] * 20)


def test_a_ramp_of_a_fixed_concurrency_spreads_its_first_requests() -> None:
    assert arrivals(6, "inf", 0, ramp_up_s=8.0, slots=4) == [0.0, 2.0, 4.0, 6.0, 8.0, 8.0]
