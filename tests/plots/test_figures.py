"""The data of every figure, by hand-worked cases."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs
from support.synthetic import write_log

from core.analysis import cost_model, step_sample
from core.analysis.results import Results
from core.analysis.step_sample import StepSample
from core.errors import NoDataError
from core.plots import histogram, latency, png, routing, scatter, steptime
from core.routing.expected import Expected, ExpectedPhase
from core.routing.imbalance import Imbalance
from core.rundir.result import Result
from core.stats.arrays import Floats


def result(ttfts_ms: list[float], tpots_ms: list[float], **more: Any) -> Result:
    """Requests of three tokens each, with these TTFTs and TPOTs."""
    return Result(
        ttfts=[t / 1e3 for t in ttfts_ms],
        itls=[[t / 1e3, t / 1e3] for t in tpots_ms],
        output_lens=[3] * len(ttfts_ms),
        mean_ttft_ms=float(np.mean(ttfts_ms)),
        mean_tpot_ms=float(np.mean(tpots_ms)),
        **more,
    )


def group(name: str, *results: Result) -> Results:
    return Results(name, {f"{i:03d}": r for i, r in enumerate(results, 1)}, {}, {})


@pytest.fixture
def sample(tmp_path: Path) -> StepSample:
    """Two layers, four experts, top 2; one prompt step and three decode steps of run 001, one
    decode step of 002."""
    loads = np.array(
        [
            [[4, 4, 4, 4], [8, 8, 0, 0]],  # 8 tokens of a prompt
            [[2, 2, 0, 0], [1, 1, 1, 1]],  # 2 tokens each
            [[2, 2, 0, 0], [1, 1, 1, 1]],
            [[2, 2, 0, 0], [1, 1, 1, 1]],
            [[1, 1, 0, 0], [0, 0, 1, 1]],  # 1 token
        ]
    )
    labels, prefill = ["001"] * 4 + ["002"], [8, 0, 0, 0, 0]
    write_log(
        tmp_path / "dp0_pp0.gatelog",
        loads,
        labels=labels,
        prefill=prefill,
        ranks=2,
        placement=(0, 0, 1, 1),
    )
    return step_sample.read([tmp_path])


class TestStepSample:
    def test_a_row_a_step_with_means_over_layers(self, sample: StepSample) -> None:
        assert sample["tokens"].tolist() == [8, 2, 2, 2, 1]
        assert sample["prefill_tokens"].tolist() == [8, 0, 0, 0, 0]
        assert sample["run"].tolist() == [0, 0, 0, 0, 1]
        assert sample["cv"].tolist() == pytest.approx([0.5, 0.5, 0.5, 0.5, 1.0])
        # ranks get 8+8 | 16+0, then 4+0 | 2+2, then 2+0 | 0+2
        assert sample["extra"].tolist() == pytest.approx(
            [(0 + 8) / 2, (2 + 0) / 2, 1, 1, (1 + 1) / 2]
        )
        assert sample["mean_load"].tolist() == [8, 2, 2, 2, 1]
        # floor² = (E/k²) Σ p(1-p)/(n-1), E = 4, k = 2; nan for one token
        floor = (4 * 0.25 / 7 + 0) / 2, (0 + 4 * 0.25) / 2
        assert sample["floor_squared"].tolist()[:2] == pytest.approx(floor)
        assert math.isnan(sample["floor_squared"][4])

    def test_counts_are_of_whole_runs(self, sample: StepSample) -> None:
        assert sample.labels == ("001", "002")
        assert sample.counts[0].tolist() == [[10, 10, 4, 4], [11, 11, 3, 3]]
        assert sample.of_run("002").counts[0].tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]
        assert len(sample.of_run("001").rows) == 4
        with pytest.raises(NoDataError, match="no step of 003 in the gate log; there are 001, 002"):
            sample.of_run("003")

    def test_a_run_begun_anew_is_its_last_start(self, tmp_path: Path) -> None:
        for name, load in (("a", 3), ("b", 1)):
            (tmp_path / name).mkdir()
            write_log(
                tmp_path / name / "dp0_pp0.gatelog", np.full((2, 1, 4), load), tokens=[2 * load] * 2
            )
        found = step_sample.read([tmp_path / "a", tmp_path / "b"]).of_run("001")
        assert found["tokens"].tolist() == [2, 2]
        assert found.counts[0].tolist() == [[2, 2, 2, 2]]


class TestHeatMap:
    def test_load_is_over_the_layers_fair_share(self, sample: StepSample) -> None:
        drawn = routing.heat_map(sample, "all2all")
        # layer 0: 11, 11, 4, 4 of a mean of 7.5; layer 1: 11, 11, 4, 4
        assert drawn.values == pytest.approx(np.array([[11, 11, 4, 4]] * 2) / 7.5)
        assert drawn.note == "n = 5 steps, 30 routed tokens per layer"

    def test_a_layer_without_load_is_zero(self, tmp_path: Path) -> None:
        write_log(tmp_path / "dp0_pp0.gatelog", np.array([[[2, 2], [0, 0]]]), tokens=[2])
        assert routing.heat_map(step_sample.read([tmp_path]), "x").values.tolist() == [
            [1, 1],
            [0, 0],
        ]

    def test_an_empty_log_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(NoDataError, match="all2all: its gate log has no steps of a run"):
            routing.heat_map(step_sample.read([]), "all2all")


class TestCvOverTime:
    def test_a_point_a_run_prefill_and_decode_apart_with_their_floors(
        self, sample: StepSample
    ) -> None:
        drawn = routing.cv_over_time(sample, "all2all")
        curves = {c.name: c for c in drawn.curves}
        assert list(curves) == [
            "prefill CV",
            "prefill noise floor",
            "decode CV",
            "decode noise floor",
        ]
        # steps start every 2 ms: the decode steps of 001 at 2, 4, 6 ms, that of 002 at 8
        assert curves["decode CV"].x == pytest.approx([0.004, 0.008])
        assert curves["decode CV"].y == pytest.approx([0.5, 1.0])
        assert curves["decode noise floor"].x == pytest.approx([0.004])  # one token has no floor
        assert curves["decode noise floor"].y == pytest.approx([math.sqrt(0.5)])
        assert drawn.x_label == "time since the first step, s"

    def test_one_run_is_cut_into_stretches_of_steps(self, tmp_path: Path) -> None:
        write_log(tmp_path / "dp0_pp0.gatelog", np.tile([[[3, 1, 1, 1]]], (240, 1, 1)))
        (curve, _) = routing.cv_over_time(step_sample.read([tmp_path]), "x").curves
        assert len(curve.x) == routing.BINS
        assert curve.x[0] == pytest.approx(np.mean(range(10)) * 0.002)

    def test_the_interval_is_over_blocks_of_neighbouring_steps(self) -> None:
        # six steps make blocks of two, with means 2, 3, 4: their spread is 1, t(2) is 4.303
        steps = np.array([1.5, 2.5, 3, 3, 4, 4])
        reach = 4.302652729696142 / math.sqrt(3)
        assert routing.block_interval(steps) == pytest.approx((3 - reach, 3 + reach))
        assert routing.block_interval(steps - 1) == pytest.approx(
            (0, 2 + reach)
        )  # a CV is not below 0
        assert all(
            math.isnan(end)
            for few in ([1.0], [1.0, 2, 3])
            for end in routing.block_interval(np.array(few))
        )

    def test_runs_stand_in_order_of_time_whichever_a_log_names_first(
        self, sample: StepSample
    ) -> None:
        times = sample["start_ns"].copy()
        rows = sample.rows.copy()
        rows[:, step_sample.COLUMNS.index("start_ns")] = times[
            ::-1
        ]  # now 002, the second label, ran first
        curves = {c.name: c for c in routing.cv_over_time(replace(sample, rows=rows), "x").curves}
        assert curves["decode CV"].x == pytest.approx([0.0, 0.004])
        assert curves["decode CV"].y == pytest.approx([1.0, 0.5])


class TestRankLoad:
    def test_bars_are_means_over_runs_and_the_busiest_rank_stands_beside(self) -> None:
        runs = [
            Result(measured_imbalance=Imbalance(rank_loads=[*loads], rank_imbalance=worst))
            for loads, worst in (([30, 10], 1.6), ([50, 30], 1.4))
        ]
        bars = routing.rank_load(group("all2all", *runs))
        assert bars.values == pytest.approx([(1.5 + 1.25) / 2, (0.5 + 0.75) / 2])
        assert [name for name, _ in bars.lines] == ["even", "busiest rank of a step, mean"]
        assert [level for _, level in bars.lines] == pytest.approx([1, 1.5])
        assert bars.low is not None
        assert bars.high is not None
        reach = 12.706204736432095 * 0.125  # t(1) × the standard error
        assert bars.high[0] == pytest.approx(1.375 + reach)
        assert bars.low.tolist() == [0, 0]  # no load is below 0

    def test_repeats_that_routed_alike_count_once(self) -> None:
        """Three repeats of one dataset, of which two are alike, and the same of another dataset."""
        alike, other = (
            Result(
                measured_imbalance=Imbalance(
                    expert_loads=loads, rank_loads=[*loads], rank_imbalance=1.5
                )
            )
            for loads in ([12.0, 6.0], [9.0, 9.0])
        )
        labels = {"001-r1": alike, "001-r2": alike, "001-r3": other, "002-r1": alike}
        found = Results("all2all", labels, {}, {})
        assert [*found.routed] == ["001-r1", "001-r3", "002-r1"]
        bars = routing.rank_load(found)
        assert bars.values == pytest.approx([(4 / 3 + 1 + 4 / 3) / 3, (2 / 3 + 1 + 2 / 3) / 3])
        assert bars.note.startswith("n = 3 runs (1 that routed like another repeat left out); ")
        of_a_repeat = routing.rank_load(found, label="001-r2")
        assert of_a_repeat.values == pytest.approx([4 / 3, 2 / 3])

    def test_runs_of_equal_loads_are_drawn(self, tmp_path: Path) -> None:
        """The interval over equal runs has no width, and lies beside their mean by rounding."""
        run = Result(measured_imbalance=Imbalance(rank_loads=[1001, 999], rank_imbalance=1.2))
        bars = routing.rank_load(group("all2all", *[run] * 9))
        assert bars.low is not None
        assert bars.high is not None
        outside = (bars.low > bars.values) | (bars.high < bars.values)
        assert outside.any()
        assert png.write(bars, tmp_path / "ranks.png").stat().st_size

    def test_without_ranks_it_says_so(self) -> None:
        with pytest.raises(NoDataError, match="baseline did not run with expert parallelism"):
            routing.rank_load(group("baseline", Result(measured_imbalance=Imbalance())))


class TestEcdf:
    def test_steps_of_one_over_n_with_their_band(self) -> None:
        runs = result([40.0, 10, 30, 20], [1.0, 2, 3, 4])
        drawn = latency.ecdf([group("baseline", runs, runs)], "ttft")
        (curve,) = drawn.curves
        assert curve.x == pytest.approx([10, 10, 20, 20, 30, 30, 40, 40])
        assert curve.y == pytest.approx(np.arange(1, 9) / 8)
        assert curve.low is not None
        assert curve.low[-1] == pytest.approx(1 - math.sqrt(math.log(40) / 16))
        assert curve.name == "baseline: p50 25, p90 40 ms"
        assert drawn.note.startswith("n = 8 requests")
        assert latency.ecdf([group("baseline", runs)], "tpot").curves[0].x == pytest.approx(
            [1, 2, 3, 4]
        )

    def test_a_failed_request_counts_for_nothing(self) -> None:
        runs = result([10.0, 20], [1.0, 2])
        runs.ttfts.append(None)
        runs.itls.append([])
        runs.output_lens.append(0)
        assert latency.per_request(runs, "ttft") == pytest.approx([10, 20])
        assert latency.per_request(runs, "e2e").tolist() == []  # no mean_e2e_ms to agree with

    def test_gaps_that_begin_with_the_ttft_give_no_tpot(self) -> None:
        older = result([100.0, 110], [10.0, 12])
        for ttft, gaps in zip(older.ttfts, older.itls, strict=True):
            gaps.insert(0, ttft or 0.0)
        assert latency.per_request(older, "tpot").tolist() == []
        with pytest.raises(NoDataError, match="no result lists the TPOT of its requests"):
            latency.ecdf([group("baseline", older)], "tpot")


class TestScatterIntervals:
    def test_x_from_the_run_and_y_over_its_requests(self) -> None:
        measured = Imbalance(excess_squared=0.5, intervals={"excess_squared": (0.4, 0.7)})
        runs = [
            result([10.0, 20, 30], [1.0, 2, 3], measured_imbalance=measured),
            result(
                [10.0],
                [1.0],
                measured_imbalance=Imbalance(
                    excess_squared=-0.1, intervals={"excess_squared": None}
                ),
            ),
        ]
        (points,) = scatter.series([group("baseline", *runs)], "mean_ttft_ms", "excess").groups
        assert points.x.tolist() == [0.5, -0.1]
        assert points.x_interval is not None
        assert points.y_interval is not None
        assert points.x_interval[0].tolist() == [0.4, 0.7]
        reach = 4.302652729696142 * 10 / math.sqrt(3)  # t(2)
        assert points.y_interval[0] == pytest.approx([0, 20 + reach])  # 20 - reach is below 0
        assert np.isnan(points.x_interval[1]).all()
        assert np.isnan(points.y_interval[1]).all()

    def test_x_from_what_was_predicted_of_the_router(self) -> None:
        """The busiest rank's active experts; all of them where there are no EP ranks; of prefill
        where decode was not predicted."""
        one = ExpectedPhase(tokens=8, excess_cv=None, active_experts=6)
        ranks = structs.replace(one, busiest_rank_experts=4)
        known = Expected(
            model="", mode="", prompts=1, tokens=8, layer_numbers=[], loads=[], prefill=ranks
        )
        predicted = [known, structs.replace(known, decode=one), None]
        runs = [result([10.0], [1.0], predicted=of) for of in predicted]
        (points,) = scatter.series(
            [group("baseline", *runs)], "mean_ttft_ms", "predicted-work"
        ).groups
        assert points.x.tolist() == [4, 6]

    def test_what_lacks_a_value_is_counted(self) -> None:
        runs = [
            result([10.0 * i], [1.0], measured_imbalance=Imbalance(excess_squared=x))
            for i, x in ((1, 0.5), (2, None))
        ]
        drawn = scatter.series([group("baseline", *runs)], "mean_ttft_ms", "excess")
        assert drawn.note == "n = 1; 1 without both values"


class TestStepTime:
    def test_medians_of_tenths_of_the_steps(self) -> None:
        x: Floats = np.arange(100, dtype=np.float64)[::-1]
        curve = steptime.binned_medians(x, x * 2)
        assert curve.x == pytest.approx(np.arange(10) * 10 + 4.5)
        assert curve.y == pytest.approx(2 * curve.x)

    def test_the_batch_is_held_fixed(self, tmp_path: Path) -> None:
        """Time is 1000 + 10 · requests + 7 · active experts µs, and fewer are active as requests
        rise."""
        requests, few = np.repeat([4, 8, 12, 16], 20), np.tile([0, 1], 40)
        loads = np.stack([requests, requests - few, few, 0 * few], axis=1)[:, None]
        active = (loads > 0).sum(axis=2)[:, 0]
        took = (1000 + 10 * requests + 7 * active) * 1000
        write_log(tmp_path / "dp0_pp0.gatelog", loads, durations_ns=took.tolist())
        decode = step_sample.read([tmp_path]).of_phase("decode")
        model = cost_model.fit(decode, "decode")
        assert model.terms["active"].value == pytest.approx(7, abs=0.01)
        held = cost_model.held_fixed(model, decode)
        spread = held - 7 * active
        assert np.ptp(spread) < 0.1
        _, fixed = steptime.step_time(step_sample.read([tmp_path]), "x")
        assert fixed.x_label == "work of the busiest rank, by active experts and tokens, ms"

    def test_it_needs_fifty_steps(self, sample: StepSample) -> None:
        with pytest.raises(
            NoDataError, match="all2all: 4 decode steps in its gate log, 50 are needed"
        ):
            steptime.step_time(sample, "all2all")


def test_a_histogram_counts_by_bins_of_a_twentieth() -> None:
    drawn = histogram.of([0.31, 0.34, 0.42], "score", "datasets")
    assert drawn.names == ("0.30–0.35", "0.35–0.40", "0.40–0.45")
    assert drawn.values.tolist() == [2, 0, 1]
