"""Associations: against scipy, hand-worked numbers, and effects that were
planted."""

from __future__ import annotations

import itertools

import msgspec
import numpy as np
import pytest
from scipy import stats

from core.stats import association, dependence
from core.stats.arrays import Floats
from core.stats.association import associate


def planted(seed: int, n: int, slope: float, noise: float = 1.0) -> tuple[Floats, Floats]:
    """Points of y = 10 + slope × x + noise."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(0.2, 1.0, n)
    return x, 10 + slope * x + rng.normal(0, noise, n)


class TestAgainstScipy:
    def test_coefficients_and_slope(self) -> None:
        x, y = planted(0, 30, 3.0)
        found = associate(x, y)
        assert found.spearman.value == pytest.approx(stats.spearmanr(x, y).statistic)
        assert found.pearson.value == pytest.approx(stats.pearsonr(x, y).statistic)
        assert found.explained.value == pytest.approx(stats.pearsonr(x, y).statistic ** 2)
        slope = stats.theilslopes(y, x)
        assert found.slope.value == pytest.approx(slope.slope)
        assert found.slope.interval == pytest.approx((slope.low_slope, slope.high_slope))

    def test_permutation_p_is_near_the_exact_one(self) -> None:
        x, y = planted(3, 8, 2.0)
        orders = np.array(list(itertools.permutations(stats.rankdata(y))))  # all 40 320
        every = abs(association.pearson_rows(stats.rankdata(x), orders))
        exact = np.mean(every >= abs(stats.spearmanr(x, y).statistic) - 1e-12)
        found = dependence.shuffled(x, y)[0]
        assert (found >= found[0]).mean() == pytest.approx(float(exact), abs=0.015)

    def test_the_tests_of_a_slope_are_sens_interval_inverted(self) -> None:
        x, y = planted(1, 30, 3.0)
        low, high = association.slope(x, y).interval or (0.0, 0.0)
        sign = [stats.kendalltau(x, y - end * x, method="asymptotic").pvalue for end in (low, high)]
        assert sign == pytest.approx([0.05, 0.05], abs=0.01)
        assert association.p_larger(x, y, 0.0) == pytest.approx(
            stats.kendalltau(x, y, method="asymptotic").pvalue
        )
        assert association.p_larger(x, y, low) == pytest.approx(0.025, abs=0.004)
        assert association.p_equivalent(x, y, high) == pytest.approx(0.025, abs=0.004)
        assert association.p_equivalent(x, -y, high) == association.p_equivalent(x, y, high)

    def test_partial_is_the_recursion_formulas(self) -> None:
        rng = np.random.default_rng(4)
        z = rng.normal(size=40)
        x, y = z + rng.normal(size=40), z + rng.normal(size=40)
        xy, xz, yz = (stats.spearmanr(a, b).statistic for a, b in ((x, y), (x, z), (y, z)))
        expected = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
        assert associate(x, y, [z]).partial.value == pytest.approx(expected)

    def test_holm_by_hand(self) -> None:
        # sorted: 0.01 × 3, 0.02 × 2, 0.04 × 1, each at least the one before it
        assert association.holm([0.04, None, 0.01, 0.02]) == pytest.approx([0.04, None, 0.03, 0.04])


class TestPlantedEffects:
    def test_slopes_lie_in_their_intervals_and_none_is_reported_where_there_is_none(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dependence, "PERMUTATIONS", 399)
        held = covered = false = missed = 0
        for seed in range(200):
            x, y = planted(seed, 25, 5.0)
            found = associate(x, y)
            low, high = found.slope.interval or (0.0, 0.0)
            held += low <= 5.0 <= high
            missed += not found.is_seen
            low, high = found.pearson.interval or (0.0, 0.0)
            r = 5 * np.sqrt(0.8**2 / 12) / np.sqrt(25 * 0.8**2 / 12 + 1)
            covered += low <= r <= high
            false += associate(x, np.random.default_rng(1000 + seed).normal(size=25)).is_seen
        assert 0.92 <= held / 200 <= 0.98
        assert 0.92 <= covered / 200 <= 0.98
        assert false / 200 <= 0.08
        assert missed / 200 <= 0.05

    def test_an_effect_of_length_alone_vanishes_when_length_is_held_fixed(self) -> None:
        rng = np.random.default_rng(5)
        tokens = rng.integers(100, 4000, 60).astype(float)
        x, y = tokens / 4000 + rng.normal(0, 0.1, 60), 20 + tokens / 100 + rng.normal(0, 3, 60)
        found = associate(x, y, [tokens])
        assert found.is_seen
        assert not found.partial.excludes_zero


class TestWhatNCannotSupport:
    @pytest.mark.parametrize(("x", "reason"), [([1.0, 2, 3], "n = 3"), ([1.0] * 9, "same value")])
    def test_too_few_or_constant_points_are_null_with_a_reason(
        self, x: list[float], reason: str
    ) -> None:
        found = associate(np.array(x), np.arange(len(x), dtype=float))
        assert found.spearman.value is None
        assert reason in str(found.spearman.reason)
        assert found.spearman.shown() == "–"
        assert not found.is_seen


class TestDependence:
    def test_distance_correlation_by_hand(self) -> None:
        # x: distances 0 1 2 | 1 0 1 | 2 1 0: row means 1, 2/3, 1, of all 8/9. Centred, in ninths:
        # -10, 2, 8 | 2, -4, 2 | 8, 2, -10. dCov²(x, x) = 360/729.
        # y = 0, 1, 0: 0 1 0 | 1 0 1 | 0 1 0: row means 1/3, 2/3, 1/3, of all 4/9. Centred, in
        # ninths: -2, 4, -2 | 4, -8, 4 | -2, 4, -2. dCov²(y, y) = 144/729.
        # products: 20 + 8 - 16 + 8 + 32 + 8 - 16 + 8 + 20 = 72
        found = dependence.distance_correlation(np.array([0.0, 1, 2]), np.array([0.0, 1, 0]))
        assert found == pytest.approx((72 / (360 * 144) ** 0.5) ** 0.5)
        x: Floats = np.arange(10, dtype=np.float64)
        assert dependence.distance_correlation(x, -3 * x) == pytest.approx(1)
        assert dependence.distance_correlation(x, np.ones(10)) == 0

    def test_its_statistic_is_the_distance_covariance_whatever_the_ties(self) -> None:
        rng = np.random.default_rng(0)
        x, y = rng.integers(0, 5, (2, 12)).astype(np.float64)
        one, other = (dependence.centred_distances(stats.rankdata(v)) for v in (x, y))
        seen = dependence.shuffled(x, y)[2, 0] * 12**3
        assert seen == pytest.approx((one * other).sum() / 2)

    def test_a_u_among_few_points_is_seen_as_a_bend_alone(self) -> None:
        x = np.linspace(-1, 1, 25)
        for way in (1, -1):
            found = associate(x, way * x**2 + np.random.default_rng(0).normal(0, 0.15, 25))
            assert found.bends
            assert found.tests is not None
            assert found.tests.bend < found.tests.distance

    def test_p_is_corrected_for_three_tests_and_by_no_more_than_three(self) -> None:
        for seed in range(5):
            x, y = planted(seed, 12, 2.0)
            found = dependence.shuffled(x, y)
            alone = (found >= found[:, :1]).mean(axis=1)
            told = dependence.corrected(found)
            assert (np.array([told.monotone, told.bend, told.distance]) >= alone).all()
            assert alone.min() <= told.p <= 3 * alone.min()

    def test_of_unrelated_points_5_in_100_are_called_related(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dependence, "PERMUTATIONS", 199)
        rng = np.random.default_rng(0)
        drawn = rng.normal(size=(200, 2, 10))
        ps = [dependence.between(x, y, seed).p for seed, (x, y) in enumerate(drawn)]
        assert 0.02 <= np.mean(np.array(ps) < 0.05) <= 0.08

    def test_a_correction_applies_to_each_of_its_tests(self) -> None:
        x, y = planted(0, 30, 3.0)
        found = associate(x, y)
        assert found.is_monotone
        assert not msgspec.structs.replace(found, p_holm=0.06).is_monotone


def test_the_point_that_moves_a_line_is_influential() -> None:
    x = np.array([*range(10), 50.0])
    y = np.array([0.1, -0.1] * 5 + [30.0])
    assert np.flatnonzero(association.influential(x, y)).tolist() == [10]
    assert not association.influential(np.ones(5), np.arange(5, dtype=np.float64)).any()
