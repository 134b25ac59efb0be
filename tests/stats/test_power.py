"""Power of tests on starts: a table that was simulated elsewhere, scipy, simulated tests."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from core.stats import comparison, power
from core.stats.starts import Means


@pytest.mark.parametrize(
    ("spread", "effect", "starts"),
    [(1.3, 1, 28), (1.3, 2, 8), (1.3, 5, 3), (0.5, 1, 6), (0.5, 2, 3), (0.5, 5, 2)],
)
def test_starts_for_eighty_percent_power(spread: float, effect: float, starts: int) -> None:
    assert power.starts_for_difference(effect, spread) == starts
    assert power.of_difference(effect, spread, starts) >= 0.8
    assert power.of_difference(effect, spread, starts - 1) < 0.8 if starts > 2 else True


def test_paired_starts_have_half_the_degrees_of_freedom() -> None:
    quantile = stats.t.ppf(0.975, 4)
    shift = 2 / (1.5 / np.sqrt(5))
    wanted = stats.nct.sf(quantile, 4, shift) + stats.nct.cdf(-quantile, 4, shift)
    assert power.of_difference(2, 1.5, 5, paired=True) == pytest.approx(wanted, abs=2e-4)


@pytest.mark.parametrize(
    ("effect", "margin"), [(0.0, 0.02), (0.01, 0.02), (0.05, 0.02), (0.02, 0.002)]
)
def test_a_verdicts_power_is_how_often_simulated_starts_reach_it(
    effect: float, margin: float
) -> None:
    """Within four standard errors of 2,000 experiments, plus what the formula leaves out: both
    one-sided tests fail at once."""
    starts, spread, tries = 6, 0.013, 2_000
    rng = np.random.default_rng(1)
    before, after = rng.normal(0, spread, (2, tries, starts))
    after += effect
    means = (Means(b, a, paired=False, datasets=1) for b, a in zip(before, after, strict=True))
    told = [comparison.judge(one, margin)[0] for one in means]
    share = np.mean([v == ("larger" if effect > margin else "equivalent") for v in told])
    assert share == pytest.approx(power.of_verdict(effect, margin, spread, starts), abs=0.045)


def test_no_number_of_starts_tells_an_effect_from_the_margin_that_it_equals() -> None:
    assert power.starts_for_verdict(0.02, 0.02, 0.013) is None
    assert power.starts_for_difference(1e-9, 0.013) is None


def test_without_spread_two_starts_do() -> None:
    assert power.starts_for_difference(0.02, 0.0) == 2
    assert power.starts_for_verdict(0.0, 0.02, 0.0) == 2
