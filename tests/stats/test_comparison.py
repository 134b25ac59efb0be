"""Backends compared by server starts: against scipy, and by hand; verdicts; what one start says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from core.stats import comparison
from core.stats.comparison import Comparison
from core.stats.starts import Means, Side

# Two datasets at two starts of each; the second backend takes 1.1 and 1.12 × the first's mean.
BASE: Side = {1: {"001": [10.0], "002": [20.0]}, 2: {"001": [10.2], "002": [20.4]}}
OTHER: Side = {1: {"001": [11.0], "002": [22.0]}, 2: {"001": [11.4], "002": [22.8]}}


def compared(*sides: Side, margin_pct: float = 2.0) -> Comparison:
    return comparison.compare("mean_tpot_ms", "baseline", "all2all", sides, margin_pct)


def split(*parts: dict[str, float]) -> Side:
    return {start: {k: [v] for k, v in part.items()} for start, part in enumerate(parts, 1)}


class TestInterval:
    def test_starts_of_the_same_datasets_are_compared_as_students_test_does(self) -> None:
        found = compared(BASE, OTHER)
        before = [np.log([10, 20]).mean(), np.log([10.2, 20.4]).mean()]
        after = [np.log([11, 22]).mean(), np.log([11.4, 22.8]).mean()]
        test = stats.ttest_ind(after, before)
        ends = test.confidence_interval(0.95)
        assert found.ratio.value == pytest.approx(math.exp(np.mean(after) - np.mean(before)))
        assert found.ratio.interval == pytest.approx((math.exp(ends.low), math.exp(ends.high)))
        assert found.p == pytest.approx(test.pvalue)
        assert found.difference.value == pytest.approx((16.5 + 17.1) / 2 - (15 + 15.3) / 2)
        assert (found.n, found.starts, found.paired) == (2, (2, 2), False)
        assert found.unit == "2 + 2 starts, each of 2 datasets"

    def test_starts_that_share_the_datasets_out_are_paired(self) -> None:
        before = split({"001": 10, "004": 40}, {"002": 20}, {"003": 30})
        after = split({"001": 11, "004": 44}, {"002": 22.4}, {"003": 32.7})
        found = compared(before, after)
        gaps = np.log([1.1, 1.12, 1.09])
        ends = stats.ttest_1samp(gaps, 0).confidence_interval(0.95)
        assert found.ratio.value == pytest.approx(math.exp(gaps.mean()))
        assert found.ratio.interval == pytest.approx((math.exp(ends.low), math.exp(ends.high)))
        assert (found.n, found.starts, found.paired) == (4, (3, 3), True)
        assert found.unit == "3 + 3 starts, which share 4 datasets"

    def test_a_failed_run_costs_its_dataset_not_the_design(self) -> None:
        lost = {**OTHER, 2: {"001": [11.4]}}
        found = compared(BASE, lost)
        assert (found.n, found.starts, found.paired) == (1, (2, 2), False)
        assert found.ratio.interval is not None

    def test_repeats_count_at_their_mean_and_are_no_units(self) -> None:
        thrice = {
            s: {d: [v, 1.1 * v, v / 1.1] for d, (v,) in own.items()} for s, own in BASE.items()
        }
        once, more = compared(BASE, OTHER), compared(thrice, OTHER)
        assert more.ratio.value == pytest.approx(once.ratio.value)
        assert more.p == pytest.approx(once.p)
        assert "2 datasets × 1–3 repeats" in more.in_words("TPOT")

    def test_one_start_has_a_value_and_no_interval(self) -> None:
        found = compared({1: BASE[1]}, {1: OTHER[1]})
        assert found.ratio.value == pytest.approx(1.1)
        assert (found.ratio.interval, found.p, found.verdict) == (None, None, "inconclusive")
        assert found.in_words("TPOT") == (
            "all2all TPOT is 10.0 % higher than baseline's on 2 datasets: no interval: one start"
            " each: how much a restart moves it is not known (elsewhere about 1.3 %); to settle it:"
            " 2 starts or more"
        )

    @pytest.mark.parametrize("sides", [({1: BASE[1]}, OTHER), (BASE, {2: OTHER[2]})])
    def test_one_start_of_either_is_too_few(self, sides: tuple[Side, Side]) -> None:
        assert compared(*sides).ratio.interval is None

    def test_no_dataset_in_common_and_values_without_a_ratio(self) -> None:
        assert "no dataset was run by both" in compared(
            {1: {"001": [1.0]}}, {1: {"002": [1.0]}}
        ).in_words("TPOT")
        assert compared({}, {}).ratio.value is None
        zero = compared(BASE, {1: {"001": [0.0]}})
        assert zero.in_words("TPOT").endswith("a value is not above zero, so there is no ratio")

    def test_a_value_as_large_as_a_double_is_no_error(self) -> None:
        vast: Side = {1: {"001": [1e-300]}, 2: {"001": [1e300]}}
        assert compared(vast, vast).verdict == "inconclusive"


class TestVerdict:
    @pytest.mark.parametrize("value", [0.5, 3.0, -3.0, 9.0])
    def test_its_p_is_of_both_tails_at_the_margin_or_of_two_one_sided_tests(
        self, value: float
    ) -> None:
        """Two starts each, 1 above and below their mean: a standard error of √2, t with 2 degrees
        of freedom; the margin is 2."""
        around = np.array([-1.0, 1.0])
        verdict, p = comparison.judge(Means(around, value + around, paired=False, datasets=1), 2.0)
        tail, error = stats.t(2).sf, math.sqrt(2)
        larger = tail((abs(value) - 2) / error) + tail((abs(value) + 2) / error)
        equivalent = max(tail((2 - value) / error), tail((2 + value) / error))
        assert p == pytest.approx(min(larger, equivalent))
        assert verdict == ("larger" if larger < 0.05 else "inconclusive")

    def test_without_any_spread_the_difference_decides(self) -> None:
        same = np.zeros(2)
        for value, wanted in ((0.5, "equivalent"), (2.0, "inconclusive"), (2.1, "larger")):
            means = Means(same, same + value, paired=False, datasets=1)
            assert comparison.judge(means, 2.0)[0] == wanted

    def test_what_is_larger_has_an_interval_without_zero(self) -> None:
        """At the least margin, one that a restart's spread dwarfs: its p is that of no
        difference."""
        found = compared(BASE, OTHER, margin_pct=1e-9)
        assert found.p_verdict == pytest.approx(found.p)

    def test_holms_correction_may_leave_it_inconclusive(self) -> None:
        found = compared(BASE, OTHER, margin_pct=1e-9)
        assert found.verdict == "larger"
        assert comparison.corrected(found, 0.049).verdict == "larger"
        left = comparison.corrected(found, 0.05)
        assert (left.verdict, left.p_holm) == ("inconclusive", 0.05)
        assert left.needed is not None
        assert left.needed > 2

    def test_each_is_said_in_words(self) -> None:
        larger, equal = compared(BASE, OTHER), compared(BASE, OTHER, margin_pct=30)
        assert larger.in_words("TPOT") == (
            "all2all TPOT is 10.9 % higher than baseline's [+1.6, +21.1] %,"
            " 2 + 2 starts, each of 2 datasets: larger than 2 %"
        )
        assert equal.in_words("TPOT").endswith("smaller than 30 % (equivalent)")
        assert larger.to_settle == equal.to_settle == ""

    def test_what_would_settle_it(self) -> None:
        found = compared(BASE, OTHER, margin_pct=10)
        assert found.verdict == "inconclusive"
        assert found.needed is not None
        assert found.needed > 2
        assert found.to_settle == f"{found.needed} starts of 2 datasets"
        near = compared(BASE, OTHER, margin_pct=100 * (found.ratio.value or 0) - 100)
        assert near.to_settle == "over 1000 starts: the effect is near the margin"


def _logs(side: Side) -> Side:
    return {s: {d: np.log(run).tolist() for d, run in own.items()} for s, own in side.items()}
