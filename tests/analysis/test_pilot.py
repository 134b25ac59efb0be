"""A pilot's variances and times, by hand and against what was planted; designs against simulated
experiments."""

from __future__ import annotations

import math

import numpy as np
import pytest

from core.analysis import pilot
from core.analysis.pilot import Pilot
from core.experiment import events
from core.experiment.events import AnyEvent, RunFigures
from core.stats import comparison
from core.stats.starts import Side


def drawn(
    seed: int,
    starts: int,
    *,
    datasets: int = 20,
    repeats: int = 1,
    split: bool = False,
    restart: float = 0.013,
    noise: float = 0.03,
    effect: float = 0.0,
) -> tuple[Side, Side]:
    rng = np.random.default_rng(seed)
    level = np.random.default_rng(0).uniform(2, 3, datasets)

    def side(shift: float) -> Side:
        made = {}
        for start in range(1, starts + 1):
            moved = shift + rng.normal(0, restart)
            own = range(start - 1, datasets, starts) if split else range(datasets)
            made[start] = {
                f"{d:03d}": np.exp(level[d] + moved + rng.normal(0, noise, repeats)).tolist()
                for d in own
            }
        return made

    return side(0.0), side(math.log1p(effect))


def read(sides: tuple[Side, Side]) -> Pilot:
    found = pilot.of_sides(*sides, 60.0, 20.0)
    assert found
    return found


class TestVariances:
    @pytest.mark.parametrize(("split", "repeats"), [(False, 1), (False, 3), (True, 1), (True, 3)])
    def test_restarts_and_noise_are_told_apart(self, split: bool, repeats: int) -> None:
        found = [read(drawn(s, 6, split=split, repeats=repeats)) for s in range(60)]
        restart = math.sqrt(np.mean([f.restart**2 for f in found]))
        noise = math.sqrt(np.mean([f.noise**2 for f in found]))
        assert restart == pytest.approx(0.013, rel=0.25)
        assert noise == pytest.approx(0.03, rel=0.05)
        assert (found[0].restart_from, found[0].datasets) == (12, 20)

    def test_by_hand(self) -> None:
        """Logs 0, 2 and 1, 3 at two starts: no noise, and starts 1 apart, an SD of 1/√2."""
        rows = {s: {"001": [math.exp(s)], "002": [math.exp(s + 2)]} for s in (0, 1)}
        found = read((rows, rows))
        assert found.noise == pytest.approx(0, abs=1e-12)
        assert found.restart == pytest.approx(math.sqrt(0.5))

    def test_one_start_takes_the_restart_from_elsewhere(self) -> None:
        found = read(drawn(1, 1))
        assert (found.restart, found.restart_from) == (0.013, 0)
        assert found.noise == pytest.approx(0.03, rel=0.5)

    def test_one_run_of_each_says_nothing(self) -> None:
        assert pilot.of_sides(*drawn(1, 1, datasets=1), 60.0, 20.0) is None


class TestDesigns:
    @pytest.mark.parametrize(("restart", "starts"), [(0.013, (28, 8, 3)), (0.005, (6, 3, 2))])
    def test_many_runs_leave_what_restarts_need(
        self, restart: float, starts: tuple[int, int, int]
    ) -> None:
        """The table that was simulated elsewhere, for effects of 1, 2 and 5 %."""
        known = Pilot(restart, 0.0, 4, 50, 25, 60.0, 20.0)
        assert tuple(pilot.designs(known, e)[0].starts for e in (0.01, 0.02, 0.05)) == starts

    def test_hours_by_hand_and_the_pilots_own_design_first(self) -> None:
        found = pilot.designs(Pilot(0.013, 0.0, 4, 50, 24, 60.0, 20.0), 0.02)
        assert (found[0].starts, found[0].datasets, found[0].repeats) == (8, 24, 1)
        assert found[0].hours == pytest.approx(8 * (60 + 24 * 20) / 3600)
        assert found[1] == min(found, key=lambda design: design.hours)
        assert found[1].datasets == 6

    def test_a_design_finds_the_effect_in_four_of_five_simulated_experiments(self) -> None:
        known = Pilot(0.013, 0.03, 4, 50, 20, 60.0, 20.0)
        design = next(d for d in pilot.designs(known, 0.03) if (d.datasets, d.repeats) == (5, 2))
        seen = 0
        for seed in range(400):
            sides = drawn(
                seed, design.starts, datasets=design.datasets, repeats=design.repeats, effect=0.03
            )
            found = comparison.compare("mean_tpot_ms", "a", "b", sides)
            seen += found.p is not None and found.p < 0.05
        assert 0.74 <= seen / 400 <= 0.90  # 80 %, and what rounding up to whole starts adds


def test_seconds_are_of_both_backends_and_a_warm_up_counts() -> None:
    def started(backend: str, at: float) -> events.BackendStarting:
        return events.BackendStarting(at=at, backend=backend, port=1, pid=1, command=[], log="")

    def ran(run: str, took: float) -> events.RunFinished:
        figures = RunFigures(
            completed=1,
            failed=0,
            duration_s=took,
            output_throughput=None,
            latencies={},
            score=None,
            cv=None,
            aggregated_cv=None,
            excess_cv=None,
        )
        return events.RunFinished(run=run, figures=figures, result="")

    told: list[AnyEvent] = [
        started("a", 100.0),
        events.BackendReady(at=112.0, backend="a", seconds=10.0, ran={}),
        ran("a/001", 3.0),
        ran("a/002", 5.0),
        started("b", 200.0),
        events.BackendReady(at=9e9, backend="b", seconds=20.0, ran={}),  # the clock was set
        ran("b/001", 2.0),
    ]
    assert pilot.seconds(told) == (12.0 + 80.0, 4.0 + 2.0)
