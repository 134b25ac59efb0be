"""Intervals: against scipy's quantiles, and how often they cover the truth."""

from __future__ import annotations

import numpy as np
import pytest
from support.synthetic import as_log, inclusion_cv, routed

from core.routing import imbalance
from core.stats import bootstrap


def test_students_quantile_without_scipy() -> None:
    from scipy import stats

    for freedom in (1, 2, 3, 4, 7, 12, 30, 200):
        assert bootstrap.t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=2e-3)


def test_the_interval_of_a_mean_is_students() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(10, 2, 12)
    draws = bootstrap.weights(12, 20_000)
    found = bootstrap.interval(float(values.mean()), draws @ values / 12, 12)
    half = bootstrap.t_quantile(11) * values.std(ddof=1) / np.sqrt(12)
    assert found == pytest.approx((values.mean() - half, values.mean() + half), abs=0.08)


def test_one_unit_supports_no_interval() -> None:
    assert bootstrap.interval(1.0, np.ones(10), 1) is None


@pytest.mark.parametrize(("steps", "tokens"), [(40, 30), (200, 8)])
def test_intervals_of_the_excess_cover_the_truth(steps: int, tokens: int) -> None:
    """200 routers of one known skew: 95 % ± 3 of the intervals hold it, and the estimate has no
    bias to speak of."""
    weights = np.array([4.0, 2, 1, 1, 1, 1, 1, 1])
    truth = inclusion_cv(weights)
    covered, values = 0, []
    for seed in range(200):
        log = as_log(routed(np.random.default_rng(seed), [tokens] * steps, 2, weights))
        measured = imbalance.measure_segment(log, "001")
        assert measured.excess_cv is not None
        low, high = measured.intervals["excess_cv"] or (0.0, 0.0)
        covered += low <= truth <= high
        values.append(measured.excess_cv)
    assert 0.92 <= covered / 200 <= 0.98
    assert np.mean(values) == pytest.approx(truth, rel=0.01)
