"""Two curves at the same doses: a planted crossing is found, none is invented, and waiting is told
from the kernel."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace
from support.dosed import LEVELS, TPOT, Response, runs

from core.analysis import dose_pairs
from core.analysis.dose_pairs import Crossing, RankWait
from core.analysis.dose_sample import DoseRun


def crossing(baseline: Response, all2all: Response, metric: str = TPOT, **how: float) -> Crossing:
    made = [
        *runs(baseline, backend="baseline", metric=metric, **how),  # type: ignore[arg-type]  # ** has one type
        *runs(all2all, backend="all2all", metric=metric, **how),  # type: ignore[arg-type]  # ** has one type
    ]
    return dose_pairs.crossing(made, "hot-rank", metric, "baseline", "all2all")


def waiting(hot: Response, spread: Response, *, ranks: bool = True, **how: float) -> RankWait:
    loads = (lambda cv: 1 + cv, lambda _: 1.0) if ranks else (None, None)
    made = [
        *runs(hot, pattern="hot-rank", rank=loads[0], **how),  # type: ignore[arg-type]  # ** has one type
        *runs(spread, pattern="spread", rank=loads[1], **how),  # type: ignore[arg-type]  # ** has one type
    ]
    return dose_pairs.rank_wait(made, "all2all", TPOT)


class TestCrossing:
    def test_by_hand(self) -> None:
        # differences -2, -1, 1, 2 at CV 0, 0.5, 1, 1.5: the pieces pass 0 half-way between 0.5 and
        # 1
        steps = {0.0: 8.0, 0.5: 9.0, 1.0: 11.0, 1.5: 12.0}
        found = crossing(lambda _: 10.0, steps.__getitem__, levels=tuple(steps))  # type: ignore[arg-type]  # of floats
        assert found.verdict == "loses above"
        assert found.at.value == pytest.approx(0.75)
        assert [d.value.value for d in found.differences] == [-2, -1, 1, 2]

    def test_a_planted_crossing_lies_in_its_interval(self) -> None:
        held = seen = 0
        for seed in range(100):
            found = crossing(
                lambda cv: 12 + cv, lambda cv: 10 + 4 * cv, noise=0.25, seed=seed
            )  # at 2/3
            seen += found.verdict == "loses above"
            low, high = found.at.interval or (0.0, 0.0)
            held += low <= 2 / 3 <= high
        assert seen >= 98
        assert held / seen >= 0.9

    def test_no_crossing_is_invented_where_the_two_are_alike(self) -> None:
        same = [
            crossing(lambda cv: 10 + cv, lambda cv: 10 + cv, noise=0.3, seed=seed).verdict
            for seed in range(100)
        ]
        assert sum(verdict in ("loses above", "wins above", "mixed") for verdict in same) <= 5

    @pytest.mark.parametrize(
        ("baseline", "all2all", "verdict", "told"),
        [
            (
                12,
                10,
                "wins",
                "all2all TPOT beats baseline's at 5 of 5 levels, and loses detectably at none",
            ),
            (
                10,
                12,
                "loses",
                "all2all TPOT loses to baseline's at 5 of 5 levels, and wins detectably at none",
            ),
            (
                10,
                10,
                "alike",
                "no difference between all2all TPOT and baseline's is detected at any of 5 levels",
            ),
        ],
    )
    def test_none_within_the_doses_is_said(
        self, baseline: float, all2all: float, verdict: str, told: str
    ) -> None:
        found = crossing(lambda _: baseline, lambda _: all2all, noise=0.2, seed=3)
        assert found.verdict == verdict
        assert found.at.value is None
        assert told in found.in_words()

    def test_more_throughput_is_a_win(self) -> None:
        found = crossing(
            lambda _: 100.0, lambda cv: 120 - 40 * cv, "output_throughput", noise=1.0, seed=1
        )
        assert found.verdict == "loses above"
        assert found.at.value == pytest.approx(0.5, abs=0.1)
        assert "all2all throughput beats baseline's up to a recorded CV of 0." in found.in_words()

    def test_a_difference_that_turns_twice_has_no_one_crossing(self) -> None:
        found = crossing(lambda _: 10.0, lambda cv: 12.0 if cv in (0.0, 1.5) else 8.0, noise=0.1)
        assert found.verdict == "mixed"
        assert "cross more than once" in found.in_words()

    def test_too_few_runs_are_not_compared(self) -> None:
        found = crossing(lambda _: 12.0, lambda cv: 10 + 4 * cv, repeats=1)
        assert found.verdict == "unknown"
        assert "are not compared: too few runs to say" in found.in_words()

    def test_only_what_both_ran_counts(self) -> None:
        made = [
            *runs(lambda _: 12.0, backend="baseline", levels=LEVELS[:4], datasets=2),
            *runs(lambda cv: 10 + 4 * cv, datasets=3),
        ]
        (found,) = dose_pairs.crossings(made)
        assert [d.level for d in found.differences] == list(LEVELS[:4])
        assert found.datasets == 2
        assert [d.n for d in found.differences] == [12] * 4

    def test_what_a_dataset_does_to_both_goes_out(self) -> None:
        """Ten datasets whose TPOT differs by far more than the backends do, paired."""
        rng = np.random.default_rng(0)
        made: list[DoseRun] = []
        for place, level in enumerate(rng.uniform(5, 50, 10)):
            for backend, more in (("baseline", 0.0), ("all2all", 0.5)):
                one = runs(
                    lambda cv, at=level + more: at + cv,  # type: ignore[misc]
                    backend=backend,
                    repeats=1,
                    noise=0.1,
                    seed=place,
                )
                made += [replace(r, label=f"{place:03d}~hot-rank~{r.level:g}") for r in one]
        found = dose_pairs.crossing(made, "hot-rank", TPOT, "baseline", "all2all")
        assert found.verdict == "loses"
        for d in found.differences:
            low, high = d.value.interval or (0.0, 0.0)
            assert high - low < 0.6


class TestRankWait:
    def test_waiting_and_kernel_by_hand(self) -> None:
        # over levels 0.25, 0.5, 1, 1.5: hot-rank less spread = 3 × mean CV; spread over its level 0
        # = 1 × mean CV
        found = waiting(lambda cv: 10 + 4 * cv, lambda cv: 10 + cv)
        assert found.mean.value == pytest.approx(3 * 0.8125)
        assert found.spread.value == pytest.approx(0.8125)
        assert found.cvs == pytest.approx((0.8125, 0.8125))
        assert found.ranks == pytest.approx((1.8125, 1.0))

    def test_planted_waiting_lies_in_its_interval_and_is_said(self) -> None:
        found = waiting(lambda cv: 10 + 4 * cv, lambda cv: 10 + cv, noise=0.2, seed=1)
        low, high = found.mean.interval or (0.0, 0.0)
        assert low <= 3 * 0.8125 <= high
        told = found.in_words()
        assert told.startswith(
            "hot-rank against spread: all2all TPOT is higher at the same doses: +2."
        )
        assert "what the ranks' waiting for each other adds" in told
        assert "recorded CV 0.81 against 0.81, max/mean over ranks 1.81 against 1.00" in told
        assert "spread itself over level 0: +" in told

    def test_no_difference_is_said(self) -> None:
        told = waiting(lambda cv: 10 + cv, lambda cv: 10 + cv, noise=0.3, seed=2).in_words()
        assert "no difference is detected at the same doses" in told

    def test_without_ranks_it_is_a_control(self) -> None:
        told = waiting(
            lambda cv: 10 + cv, lambda cv: 10 + cv, ranks=False, noise=0.3, seed=2
        ).in_words()
        assert "no EP ranks to wait for: a control" in told

    def test_recorded_cvs_that_differ_are_said_to(self) -> None:
        made = [*runs(lambda _: 1.0), *runs(lambda _: 1.0, pattern="spread")]
        off = [replace(r, cv=r.level * (0.8 if r.pattern == "spread" else 1)) for r in made]
        assert "which is not the same" in dose_pairs.rank_wait(off, "all2all", TPOT).in_words()

    def test_too_few_runs_are_not_compared(self) -> None:
        assert (
            "not compared: too few runs"
            in waiting(lambda _: 1.0, lambda _: 1.0, repeats=1).in_words()
        )

    def test_one_pattern_alone_has_nothing_to_be_held_against(self) -> None:
        assert dose_pairs.rank_waits(runs(lambda _: 1.0)) == []
