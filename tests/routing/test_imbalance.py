"""Load imbalance: upstream's published numbers, hand-worked ones, and routers whose skew is
known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from support.gate_logs import write_layers
from support.oracle import ORACLE, needs_oracle
from support.synthetic import as_log, fair_cv, inclusion_cv, routed, write_log

from core import cli
from core.routing import imbalance, measured_folder
from core.routing.gatelog import GateLog


class TestUpstreamsNumbers:
    @needs_oracle
    @pytest.mark.parametrize(
        ("method", "file"), [("per-step", "per_step"), ("aggregated", "aggregated")]
    )
    def test_the_command_agrees_to_1e_9(self, tmp_path: Path, method: str, file: str) -> None:
        out = tmp_path / "cv.json"
        assert (
            cli.main(["imbalance", str(ORACLE / "gate_logs"), "--method", method, "-o", str(out)])
            == 0
        )
        ours, published = (
            json.loads(out.read_text()),
            json.loads((ORACLE / f"{file}.json").read_text()),
        )
        assert list(ours) == sorted(published)
        assert [ours[name] for name in sorted(published)] == pytest.approx(
            [published[name] for name in sorted(published)], abs=1e-9, rel=0
        )

    @needs_oracle
    def test_measure_folder_agrees_to_1e_9(self) -> None:
        found, problems = measured_folder.measure_folder(ORACLE / "gate_logs")
        per_step = json.loads((ORACLE / "per_step.json").read_text())
        aggregated = json.loads((ORACLE / "aggregated.json").read_text())
        assert problems == []
        for name in per_step:
            assert found[name].per_step_cv == pytest.approx(per_step[name], abs=1e-9, rel=0)
            assert found[name].aggregated_cv == pytest.approx(aggregated[name], abs=1e-9, rel=0)

    @needs_oracle
    def test_a_single_folder_is_one_entry(self, capsys: pytest.CaptureFixture[str]) -> None:
        folder = ORACLE / "gate_logs" / "gates_logs_03"
        assert cli.main(["imbalance", str(folder), "--method", "per-step", "--json"]) == 0
        assert list(json.loads(capsys.readouterr().out)) == ["gates_logs_03"]


class TestHandWorked:
    def test_two_layers_two_steps(self, tmp_path: Path) -> None:
        # layer 0: (3,1) then (2,2): CVs 0.5, 0; layer 1: (4,0) then (2,2): CVs 1, 0. Sums: (5,3),
        # (6,2): CVs 0.25, 0.5.
        folder = write_layers(tmp_path / "logs", [[[3, 1], [2, 2]], [[4, 0], [2, 2]]], [4, 4])
        measured = measured_folder.measure_folder(folder)[0]["logs"]
        assert measured.per_step_cv == pytest.approx(1.5 / 4)
        assert measured.layer_cv == pytest.approx(0.375)
        assert measured.aggregated_cv == pytest.approx(3 / 8)  # (11, 5): std 3, mean 8
        assert measured.max_min_ratio == pytest.approx(11 / 5)
        assert measured.expert_loads == [11, 5]
        assert (measured.tokens, measured.steps, measured.layers, measured.files) == (8, 2, 2, 2)

    def test_aggregated_leaves_out_steps_over_1000_tokens(self, tmp_path: Path) -> None:
        folder = write_layers(tmp_path / "logs", [[[3, 1], [1001, 0], [500, 500]]], [4, 1001, 1000])
        measured = measured_folder.measure_folder(folder)[0]["logs"]
        assert measured.aggregated_cv == pytest.approx(1 / 502)  # (503, 501)
        assert measured.per_step_cv == pytest.approx((0.5 + 1 + 0) / 3)

    def test_the_floor_of_a_hand_worked_step(self, tmp_path: Path) -> None:
        # n = 5, k = 1, E = 2, p = (0.8, 0.2): floor² = 2 · (0.16 + 0.16) / 4 = 0.16
        folder = write_layers(tmp_path / "logs", [[[4, 1]]], [5])
        assert measured_folder.measure_folder(folder)[0]["logs"].noise_floor == pytest.approx(0.4)

    def test_rank_imbalance_of_a_placement(self, tmp_path: Path) -> None:
        loads = np.array([[[4, 2, 1, 1]], [[2, 2, 2, 2]]])  # ranks (6, 2): 1.5; (4, 4): 1
        write_log(tmp_path / "dp0_pp0.gatelog", loads, ranks=2, placement=(0, 0, 1, 1))
        measured = measured_folder.measure_folder(tmp_path)[0]["gates_logs_001"]
        assert measured.rank_imbalance == pytest.approx(1.25)

    def test_entropy_gini_hottest_and_dead_of_a_hand_worked_layer(self, tmp_path: Path) -> None:
        # loads (6, 2, 0, 0): entropy (0.75 ln 4/3 + 0.25 ln 4) / ln 4; Gini Σ (2i-5) x_(i) / (4 ·
        # 8) = (2 + 18) / 32
        folder = write_layers(tmp_path / "logs", [[[4, 0, 0, 0], [2, 2, 0, 0]]], [4, 4])
        measured = measured_folder.measure_folder(folder)[0]["logs"]
        assert measured.entropy == pytest.approx(
            (0.75 * math.log(4 / 3) + 0.25 * math.log(4)) / math.log(4)
        )
        assert measured.gini == pytest.approx(20 / 32)
        assert measured.hottest_share == pytest.approx(0.75)
        assert measured.dead_experts == 2
        assert measured.expert_imbalance == pytest.approx((4 + 2) / 2)
        assert measured.max_min_ratio is None

    def test_prefill_and_decode_apart(self, tmp_path: Path) -> None:
        # a prompt step (6, 2): CV 0.5; decode steps (1, 1), (2, 0): CVs 0 and 1
        write_log(
            tmp_path / "a.gatelog",
            np.array([[[6, 2]], [[1, 1]], [[2, 0]]]),
            prefill=[8, 0, 0],
            top_k=1,
        )
        measured = measured_folder.measure_folder(tmp_path)[0]["gates_logs_001"]
        assert measured.prefill is not None
        assert measured.decode is not None
        assert (measured.prefill.steps, measured.prefill.tokens) == (1, 8)
        assert (measured.decode.steps, measured.decode.tokens) == (2, 4)
        assert measured.prefill.per_step_cv == pytest.approx(0.5)
        assert measured.decode.per_step_cv == pytest.approx(0.5)
        assert measured.decode.layer_cv == pytest.approx(0.5)  # (3, 1)
        assert measured.prefill.excess_cv_reason == "too few steps for a standard error"

    def test_layers_that_logged_different_steps(self, tmp_path: Path) -> None:
        folder = write_layers(tmp_path / "a", [[[3, 1], [2, 2]], [[4, 0], [2, 2]]], [4, 4])
        (folder / "gate_logs_1.json").write_text(
            '{"step": [0], "num_tokens": [4], "expert_loads": [[4, 0]]}'
        )
        measured = measured_folder.measure_folder(folder)[0]["a"]
        assert measured.per_step_cv == pytest.approx((0.5 + 0 + 1) / 3)
        assert measured.layer_cv == pytest.approx((0.25 + 1) / 2)
        assert (measured.steps, measured.tokens) == (2, 8)


class TestOnePass:
    def test_parts_and_joined_blocks_change_no_measure(self) -> None:
        weights = np.array([3.0, 1, 1, 1])
        loads = routed(
            np.random.default_rng(6), np.random.default_rng(7).integers(1, 1500, 300), 3, weights
        )
        log = as_log(loads)
        whole = imbalance.measure_segment(log, "001")
        place = np.arange(300)
        parts = [log.where((place >= a) & (place < a + 7)) for a in range(0, 300, 7)]
        parted = imbalance.measure_segments(parts, "001")
        step_cv = loads.std(axis=-1) / loads.mean(axis=-1)
        small = loads[log.tokens <= 1000].sum(axis=(0, 1))
        layers = loads.sum(axis=0)
        for measured in (whole, parted):
            assert measured.per_step_cv == pytest.approx(step_cv.mean(), rel=1e-9)
            assert measured.aggregated_cv == pytest.approx(small.std() / small.mean(), rel=1e-9)
            assert measured.layer_cv == pytest.approx(
                (layers.std(axis=-1) / layers.mean(axis=-1)).mean(), rel=1e-9
            )
            assert measured.expert_loads == layers.sum(axis=0).tolist()

    def test_every_label_gets_its_own_steps(self) -> None:
        loads = routed(np.random.default_rng(8), [8] * 6, 2, np.ones(4))
        log = as_log(loads)
        first = np.array([8, 8, 8, 3, 0, 0])
        both = GateLog(log.loads, log.columns, {"001": first, "002": log.tokens - first}, 2)
        measured = imbalance.measure_segment(both, "002")
        assert measured.expert_loads == loads[4:].sum(axis=(0, 1)).tolist()
        assert measured.left_out == {"shared with another segment": 1}


class TestNoiseFloorAndExcess:
    def test_a_fair_router_shows_its_floor_and_no_excess(self, tmp_path: Path) -> None:
        loads = routed(np.random.default_rng(1), [30] * 400, 4, np.ones(8))
        write_log(tmp_path / "a.gatelog", loads)
        measured = measured_folder.measure_folder(tmp_path)[0]["gates_logs_001"]
        assert measured.noise_floor == pytest.approx(fair_cv(8, 2, 30), rel=0.02)
        assert measured.per_step_cv == pytest.approx(fair_cv(8, 2, 30), rel=0.05)
        assert measured.excess_cv is None or measured.excess_cv < 0.05
        assert (measured.excess_cv is None) == (measured.excess_cv_reason is not None)

    @pytest.mark.parametrize("tokens", [4, 30, 300])
    def test_excess_finds_the_skew_whatever_the_tokens_of_a_step(
        self, tmp_path: Path, tokens: int
    ) -> None:
        weights = np.array([4.0, 2, 1, 1, 1, 1, 1, 1])
        loads = routed(np.random.default_rng(2), [tokens] * (12_000 // tokens), 4, weights)
        write_log(tmp_path / "a.gatelog", loads)
        measured = measured_folder.measure_folder(tmp_path)[0]["gates_logs_001"]
        assert measured.excess_cv == pytest.approx(inclusion_cv(weights), rel=0.06)
        assert measured.aggregated_excess_cv == pytest.approx(inclusion_cv(weights), rel=0.06)

    def test_an_excess_that_does_not_exceed_its_error_is_at_the_noise_floor(self) -> None:
        # n = 4, k = 2, E = 4, p = 1/2: CV² = 0, floor² = (4/4) · 4 · (1/4) / 3 = 1/3 in every step
        measured = imbalance.measure_segment(as_log(np.full((16, 1, 4), 2)), "001")
        assert measured.excess_cv is None
        # a fair router's: √(2/(E - 1)) · floor² / √16 steps, none of which goes with another
        assert str(measured.excess_cv_reason).startswith(
            "at the noise floor: excess² -0.3333 is not above 1.96 standard errors of 0.06804"
        )

    def test_one_token_steps_support_no_excess(self, tmp_path: Path) -> None:
        loads = routed(np.random.default_rng(3), [1] * 50, 2, np.ones(8))
        write_log(tmp_path / "a.gatelog", loads)
        measured = measured_folder.measure_folder(tmp_path)[0]["gates_logs_001"]
        assert measured.per_step_cv == pytest.approx(
            math.sqrt(3)
        )  # upstream's all2all logs: √(E/k - 1)
        assert measured.noise_floor is None
        assert measured.excess_cv is None
        assert "single token" in str(measured.excess_cv_reason)


class TestWhatIsLeftOut:
    def test_a_corrupt_file_is_named_and_the_rest_is_done(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_layers(tmp_path / "gates_logs_01", [[[3, 1]], [[2, 2]]], [4])
        bad = write_layers(tmp_path / "gates_logs_02", [[[3, 1]]], [4]) / "gate_logs_0.json"
        bad.write_text('{"step": [')
        assert cli.main(["imbalance", str(tmp_path), "--json"]) == 1
        out, err = capsys.readouterr()
        assert list(json.loads(out)) == ["gates_logs_01"]
        assert str(bad) in err

    def test_a_torn_binary_log_is_used_up_to_its_last_whole_block(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        log = write_log(
            tmp_path / "a.gatelog", routed(np.random.default_rng(4), [9] * 600, 2, np.ones(4))
        )
        log.write_bytes(log.read_bytes()[:-10])
        assert cli.main(["imbalance", str(tmp_path), "--json"]) == 1
        out, err = capsys.readouterr()
        assert json.loads(out)["gates_logs_001"]["steps"] == 512
        assert "cut off" in err

    def test_an_empty_folder_is_a_problem_and_a_missing_one_is_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["imbalance", str(tmp_path)]) == 1
        assert "no gate logs" in capsys.readouterr().err
        assert cli.main(["imbalance", str(tmp_path / "nowhere")]) == 2

    def test_the_reader_sees_files_steps_reasons_tokens_loads_and_ratio(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_layers(tmp_path / "logs", [[[3, 1], [0, 0], [2, 2]]], [4, 0, 4])
        assert cli.main(["imbalance", str(tmp_path / "logs")]) == 0
        out = capsys.readouterr().out
        for part in (
            ": 1 file, ",
            "2 steps used",
            "1 no tokens",
            "8 tokens",
            "e0 5",
            "e1 3",
            "max/min 1.6667",
        ):
            assert part in out

    def test_steps_of_two_runs_and_of_the_warm_up_count_for_none(self, tmp_path: Path) -> None:
        loads = routed(np.random.default_rng(5), [8] * 6, 1, np.ones(4))
        write_log(
            tmp_path / "a.gatelog", loads, labels=["warmup", "001", "001", "002", "002", "002"]
        )
        found, _ = measured_folder.measure_folder(tmp_path)
        assert {name: m.steps for name, m in found.items()} == {
            "gates_logs_001": 2,
            "gates_logs_002": 3,
        }
