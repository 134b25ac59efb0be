"""Dose-response curves: hand-worked figures, planted slopes and how often the intervals hold them,
what n supports."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from support.dosed import LEVELS, TPOT, runs

from core.analysis import dose_response
from core.analysis.dose_response import Curve
from core.analysis.dose_sample import DoseRun
from core.stats import bootstrap


def curve(made: list[DoseRun]) -> Curve:
    return dose_response.curve(made, "all2all", "hot-rank", TPOT)


def of_values(values: dict[float, list[float]], **fields: float) -> list[DoseRun]:
    """One dataset, with these values at each level."""
    return [
        DoseRun(
            backend="all2all",
            label="001" + f"-r{place}" * (place > 0) + f"~hot-rank~{level:g}",
            pattern="hot-rank",
            level=level,
            cv=fields.get("cv", level),
            rank=fields.get("rank"),
            values={TPOT: value},
        )
        for level, at in values.items()
        for place, value in enumerate(at)
    ]


class TestByHand:
    def test_levels_are_means_and_the_slope_is_least_squares(self) -> None:
        found = curve(of_values({0.0: [9.0, 11.0], 1.0: [13.0, 15.0], 2.0: [15.0, 21.0]}))
        assert [level.value.value for level in found.levels] == [10, 14, 18]
        assert [level.n for level in found.levels] == [2, 2, 2]
        assert found.n == 6
        assert found.per_cv.reason  # three runs beyond the first of each level: too few to say

    def test_slope_is_per_tenth_of_the_recorded_cv(self) -> None:
        # recorded CVs 0.1, 0.4, 0.5 about a mean of 1/3: deviations -7/30, 2/30, 5/30; Σd² = 78/900
        # values 1, 4, 7: Σ d·y = (-7 + 8 + 35)/30 = 36/30; slope 1.2/(78/900) = 13.846…
        made = [
            run
            for level, cv, value in ((0.0, 0.1, 1.0), (0.5, 0.4, 4.0), (1.0, 0.5, 7.0))
            for run in of_values({level: [value] * 4}, cv=cv)
        ]
        assert curve(made).per_cv.value == pytest.approx(0.1 * 1.2 / (78 / 900))

    def test_interval_of_a_level_is_students_over_the_pooled_spread(self) -> None:
        made = runs(lambda cv: 10 + cv, levels=(0.0, 1.0, 2.0), repeats=6, noise=1.0, seed=1)
        spread = np.mean(
            [
                np.var([r.values[TPOT] for r in made if r.level == v], ddof=1)
                for v in (0.0, 1.0, 2.0)
            ]
        )
        half = bootstrap.t_quantile(15) * np.sqrt(spread / 6)
        for level in curve(made).levels:
            low, high = level.value.interval or (0.0, 0.0)
            assert (high - low) / 2 == pytest.approx(half, rel=0.06)
            assert (high + low) / 2 == pytest.approx(level.value.value, abs=0.1)

    def test_datasets_that_lack_a_level_do_not_count(self) -> None:
        made = [
            r
            for r in runs(lambda cv: 10 + cv, datasets=3)
            if not (r.dataset == "001" and r.level == 1.5)
        ]
        found = curve(made)
        assert found.datasets == 2
        assert [level.n for level in found.levels] == [6] * len(LEVELS)

    def test_repeats_count_within_their_dataset(self) -> None:
        more = [r for r in runs(lambda _: 40.0, datasets=2, repeats=9) if r.dataset == "001"]
        found = curve([*(r for r in runs(lambda _: 20.0, datasets=2) if r.dataset == "000"), *more])
        assert [level.value.value for level in found.levels] == [30.0] * len(LEVELS)

    def test_the_order_of_runs_changes_nothing(self) -> None:
        made = runs(lambda cv: 10 + cv, noise=0.3)
        assert curve(made[::-1]) == curve(made)


class TestPlanted:
    @pytest.mark.parametrize(
        ("datasets", "repeats", "levels"),
        [(1, 3, LEVELS), (2, 2, (0.0, 0.5, 1.0)), (10, 1, LEVELS)],
    )
    def test_a_slope_lies_in_its_interval_and_none_is_reported_where_there_is_none(
        self, datasets: int, repeats: int, levels: tuple[float, ...]
    ) -> None:
        held = false = bends = 0
        for seed in range(200):
            how = {"datasets": datasets, "repeats": repeats, "noise": 0.3, "seed": seed}
            found = curve(runs(lambda cv: 10 + 4 * cv, levels=levels, **how))  # type: ignore[arg-type]  # ** has one type
            low, high = found.per_cv.interval or (0.0, 0.0)
            held += low <= 0.4 <= high
            bends += found.bends
            flat = curve(runs(lambda _: 10.0, levels=levels, **how))  # type: ignore[arg-type]  # ** has one type
            false += flat.per_cv.excludes_zero
        assert 0.92 <= held / 200 <= 0.99
        assert false / 200 <= 0.08
        assert bends / 200 <= 0.08

    def test_p_is_students(self) -> None:
        made = runs(lambda cv: 10 + 0.3 * cv, noise=0.3, repeats=5, seed=4)
        at = {level: [r.values[TPOT] for r in made if r.level == level] for level in LEVELS}
        off = np.array(LEVELS) - np.mean(LEVELS)
        slope = sum(d * np.mean(at[level]) for d, level in zip(off, LEVELS, strict=True)) / (
            off @ off
        )
        spread = np.mean([np.var(at[level], ddof=1) for level in LEVELS])
        t = slope / np.sqrt(spread / 5 / (off @ off))
        assert curve(made).p == pytest.approx(
            2 * stats.t.sf(abs(t), 20), rel=0.25
        )  # 2 000 resamples: to a few %

    def test_the_slope_against_rank_load(self) -> None:
        found = curve(runs(lambda cv: 10 + 4 * cv, noise=0.1, rank=lambda cv: 1 + cv / 2, seed=1))
        low, high = found.per_rank.interval or (0.0, 0.0)
        assert low <= 0.8 <= high
        assert found.levels[-1].rank == pytest.approx(1.75)

    def test_a_curve_that_bends_is_said_to(self) -> None:
        found = curve(runs(lambda cv: 10 + 4 * max(cv - 0.5, 0), noise=0.1))
        assert found.bends
        assert (
            "TPOT follows imposed skew, but not on a straight line: over the lowest dose "
            in found.in_words()
        )
        rises = [level.over_lowest for level in found.levels]
        assert rises[0] is None
        for rise, planted in zip(rises[1:], (0, 0, 2, 4), strict=True):
            assert rise is not None
            low, high = rise.interval or (0.0, 0.0)
            assert low <= planted <= high
        valley = curve(
            runs(lambda cv: 10 + 4 * abs(cv - 0.65), noise=0.1)
        )  # its mean slope says nothing
        assert "no effect" not in valley.in_words()
        assert not curve(runs(lambda cv: 10 + 4 * cv, noise=0.1)).bends


class TestInWords:
    def test_an_effect(self) -> None:
        told = curve(runs(lambda cv: 10 + 4 * cv, noise=0.05, seed=1)).in_words()
        assert told.startswith("hot-rank: all2all TPOT rises with imposed skew: +0.4")
        assert "ms per 0.1 of recorded CV" in told
        assert "(doses 0.00 to 1.50, n = 15 runs of 1 dataset)" in told

    def test_no_effect(self) -> None:
        told = curve(runs(lambda _: 10.0, noise=0.5, seed=1)).in_words()
        assert told.startswith("hot-rank: all2all TPOT: no effect of imposed skew is detected (")
        assert "[-" in told


class TestWhatNCannotSupport:
    def test_too_few_runs_are_null_and_say_how_many_are_needed(self) -> None:
        found = curve(runs(lambda cv: 10 + cv, repeats=1))
        assert found.per_cv.value is None
        assert "1 dataset at 5 levels need 3 repeats of each, or 8 datasets" in str(
            found.per_cv.reason
        )
        assert [level.value.value for level in found.levels] == [10.0, 10.25, 10.5, 11.0, 11.5]
        assert all(level.value.interval is None for level in found.levels)

    @pytest.mark.parametrize(("datasets", "repeats"), [(1, 3), (2, 2), (7, 2)])
    def test_what_it_asks_for_is_enough(self, datasets: int, repeats: int) -> None:
        few = curve(runs(lambda cv: cv, repeats=1, datasets=datasets))
        assert f"need {repeats} repeats of each" in str(few.per_cv.reason)
        assert (
            curve(runs(lambda cv: cv, repeats=repeats, datasets=datasets)).per_cv.value is not None
        )

    def test_one_level_and_no_skew_give_no_slope(self) -> None:
        assert (
            curve(runs(lambda _: 1.0, levels=(0.5,), repeats=9)).per_cv.reason
            == "one level gives no slope"
        )
        same = curve([r for v in (0.0, 1.0) for r in of_values({v: [1.0] * 9}, cv=0.3)])
        assert same.per_cv.reason == "recorded CV varies by less than 0.1 over the levels"

    def test_without_ranks_there_is_no_slope_against_their_load(self) -> None:
        found = curve(runs(lambda cv: 10 + cv))
        assert found.per_rank.reason == "no max/mean over ranks was recorded"
        assert found.levels[0].rank is None

    def test_no_run_makes_no_curve(self) -> None:
        assert dose_response.curves([]) == []
        assert dose_response.curves(runs(lambda _: 1.0, pattern="")) == []
