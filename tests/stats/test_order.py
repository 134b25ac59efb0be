"""Intervals of quantiles by order statistics: against the binomial by hand, and by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from core.stats import order


def test_the_median_of_six_lies_between_the_ends_by_hand() -> None:
    """2 · 2^-6 = 3.1 % of sixes lie on one side of the median; of fives 6.25 %, so fives have one
    end: 2^-5 = 3.1 %."""
    assert order.interval([3, 1, 2, 6, 5, 4], 0.5) == (1.0, 6.0)
    assert order.interval([3, 1, 2, 5, 4], 0.5) == (1.0, None)
    assert order.interval([3, 1, 2, 4], 0.5) == (None, None)
    assert order.interval([], 0.5) == (None, None)


def test_the_median_of_a_hundred_as_in_conovers_table() -> None:
    assert order.interval(np.arange(1, 101), 0.5) == (40, 61)


def test_a_p99_has_an_upper_end_from_299_values_on() -> None:
    """0.99^298 = 5.004 %, 0.99^299 = 4.954 %: the largest value is then above the p99 in 95 %."""
    assert order.interval(np.arange(298), 0.99)[1] is None
    assert order.interval(np.arange(299), 0.99)[1] == 298
    assert order.interval(np.arange(299), 0.01)[0] == 0  # the same at the other end


def test_a_hundred_values_give_the_p99_a_lower_end_by_hand() -> None:
    """Of 100, place 96 (from 0) is above the p99 if at most 96 are below it, which is so if 4 or
    more are above: Poisson-like, 1.84 %; with place 97 it would be 7.9 %."""
    assert order.interval(np.arange(100), 0.99) == (96.0, None)


@pytest.mark.parametrize(("n", "quantile"), [(30, 0.5), (100, 0.99), (299, 0.99), (1000, 0.9)])
def test_intervals_cover_in_95_percent_or_more(n: int, quantile: float) -> None:
    """4000 samples of a skewed distribution; a true 95 % shows below 94.3 % in 2 of 100."""
    drawn = np.random.default_rng(n).lognormal(size=(4000, n))
    truth = float(np.exp({0.5: 0.0, 0.9: 1.2815515655, 0.99: 2.3263478740}[quantile]))
    ends = [order.interval(values, quantile) for values in drawn]
    held = [(low or 0.0) <= truth <= (np.inf if high is None else high) for low, high in ends]
    assert 0.943 <= np.mean(held) <= 0.99
