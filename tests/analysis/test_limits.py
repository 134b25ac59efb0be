"""A searched limit: what it is, and what its interval rests on."""

from __future__ import annotations

import math

import pytest

from core.analysis import limits
from core.analysis.limits import Part, Point
from core.experiment.search import Search

RATE = Search(over="request_rate", slo={"ttft_ms": 1.0}, share=0.9)
WHOLE = Search(slo={"ttft_ms": 1.0}, share=0.9)
Goods = dict[float, tuple[int, ...]]
"""Load → of 100 requests, those that met the objective at each start."""


def points(goods: Goods) -> list[Point]:
    return [
        Point(load=load, parts=[Part(start=n, good=g, requests=100) for n, g in enumerate(own, 1)])
        for load, own in goods.items()
    ]


def test_of_several_starts_it_is_the_mean_of_theirs_with_students_interval() -> None:
    """The shares fall through 0.9 half and a quarter of the way from 10 to 20, and a third of that
    from 20 to 40."""
    found = limits.answer(
        points({10.0: (100, 95, 100), 20.0: (80, 75, 100), 40.0: (0, 0, 70)}), RATE
    )
    at = [10 * 2**part for part in (0.5, 0.25, 1 + 1 / 3)]
    logs = [math.log(one) for one in at]
    mean = sum(logs) / 3
    spread = math.sqrt(sum((one - mean) ** 2 for one in logs) / 2)
    half = 4.302653 * spread / math.sqrt(3)
    assert (found.starts, found.unit) == (3, "3 starts")
    assert found.value == pytest.approx(math.exp(mean))
    assert found.low == pytest.approx(math.exp(mean - half))
    assert found.high == pytest.approx(math.exp(mean + half))


def test_starts_that_agree_leave_the_two_loads_as_its_ends() -> None:
    goods: Goods = {6.0: (100, 100), 7.0: (80, 80)}
    assert limits.answer(points(goods), RATE)[1:] == pytest.approx((6, 7, 2))
    found = limits.answer(points(goods), WHOLE)  # 6.5 requests in flight cannot be
    assert (found.value, found.low, found.high) == (6, 6, 7)


def test_a_share_that_rises_by_chance_is_levelled() -> None:
    """80 and 100 of 100 count as 90 and 90: both meet it, as does nothing beyond."""
    (one, other) = (
        limits.answer(points({8.0: (100, 100), 10.0: own, 12.0: above, 14.0: (50, 50)}), RATE)
        for own, above in (((80, 80), (100, 100)), ((90, 90), (90, 90)))
    )
    assert one == other


@pytest.mark.parametrize(
    ("goods", "value"),
    [
        ({6.0: (100,), 7.0: (50,)}, 6),  # one start
        ({6.0: (100, 100), 7.0: (50, 100)}, 6),  # one has no load that is too much
        ({6.0: (100, 50), 7.0: (50, 50)}, None),  # to one every load was; pooled, 6 is missed
    ],
)
def test_else_it_rests_on_requests(goods: Goods, value: float | None) -> None:
    found = limits.answer(points(goods), RATE)
    assert (found.value, found.unit) == (value, "requests of one start")
