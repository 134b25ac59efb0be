"""A run directory in other layouts, through the command."""

from __future__ import annotations

import json
import sys
import tracemalloc
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from support.about import about
from support.synthetic import routed, write_log

from core import cli, files
from core.recorder.gatescope_recorder.kernel import Kernel, Tiling
from core.report import export
from core.routing import folder as gate_folder
from core.routing import measured_folder, work


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    made = tmp_path / "run"
    (made / "baseline" / "results_json").mkdir(parents=True)
    (made / "run.json").write_bytes(files.formatted(about(engine="test")))
    for label in ("001", "002-r2"):
        (made / "baseline" / "results_json" / f"{label}.json").write_text('{"mean_tpot_ms": 12.5}')
    (made / "baseline_real_imbalance.json").write_text('{"gates_logs_001": 0.4}')
    loads = routed(np.random.default_rng(0), [8] * 6, 2, np.ones(4))
    labels = ["warmup", "001", "001", "001", "002-r2", "002-r2"]
    write_log(made / "baseline" / "gate_logs" / "dp0_pp0.gatelog", loads, labels=labels)
    return made


def test_upstreams_layout_measures_as_the_run_did(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", str(run_dir), "--layout", "upstream"]) == 0
    out = run_dir / "export"
    assert (out / "baseline" / "results_json" / "001.json").is_file()
    assert (out / "baseline_real_imbalance.json").is_file()
    assert sorted(p.name for p in (out / "baseline" / "gate_logs").iterdir()) == [
        "gates_logs_01",
        "gates_logs_02-r2",
    ]
    capsys.readouterr()
    both = []
    for folder in (run_dir / "baseline" / "gate_logs", out / "baseline" / "gate_logs"):
        assert cli.main(["imbalance", str(folder), "--method", "per-step", "--json"]) == 0
        both.append(list(json.loads(capsys.readouterr().out).values()))
    assert both[0] == pytest.approx(both[1])


def test_upstreams_percentiles_are_plain(run_dir: Path) -> None:
    """Two requests: at 99 % of the way from the lower value to the higher, as upstream's NumPy."""
    file = run_dir / "baseline" / "results_json" / "001.json"
    written = {
        "mean_ttft_ms": 200.0,
        "mean_tpot_ms": 15.0,
        "p99_ttft_ms": None,
        "p99_ttft_ms_reason": "n = 2, and a p99 needs 100",
        "p99_itl_ms": 7.0,
        "ttfts": [0.1, 0.3],
        "itls": [[0.01], [0.02]],
        "output_lens": [2, 2],
        "errors": ["", ""],
    }
    file.write_text(json.dumps(written))
    assert cli.main(["export", str(run_dir), "--layout", "upstream"]) == 0
    out = json.loads((run_dir / "export" / "baseline/results_json/001.json").read_text())
    assert out["p99_ttft_ms"] == pytest.approx(298.0)
    assert out["p99_tpot_ms"] == pytest.approx(19.9)
    assert out["p99_itl_ms"] == 7.0
    assert "p99_ttft_ms_reason" not in out
    assert json.loads(file.read_text()) == written


def test_a_long_log_is_exported_in_bounded_memory(run_dir: Path, tmp_path: Path) -> None:
    """Peak memory is that of a part: four times the steps take no more of it."""
    peaks = []
    for steps in (500, 2000):
        loads = np.random.default_rng(1).integers(0, 9, (steps, 2, 64))
        logs, out = run_dir / "baseline" / "gate_logs", tmp_path / str(steps)
        (logs / "dp0_pp0.gatelog").unlink()
        write_log(logs / "dp0_pp0.gatelog", loads, tokens=[9] * steps)
        with mock.patch.object(gate_folder, "PART_COUNTS", 1 << 14):
            tracemalloc.start()
            export.upstream(run_dir, out)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        layer = json.loads((out / "baseline/gate_logs/gates_logs_01/gate_logs_1.json").read_text())
        assert layer["step"] == list(range(steps))
        assert np.array_equal(layer["expert_loads"], loads[:, 1])
    assert peaks[1] < 1.6 * peaks[0], peaks


class TestParquet:
    def test_steps_have_the_work_of_the_busiest_rank(self, run_dir: Path, tmp_path: Path) -> None:
        """8 tokens a step, one rank: one tile of 16 for each active expert, 2 SMs, 4 and 2 blocks
        of columns."""
        files = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
        loads = np.array([[[8, 8, 0, 0], [5, 5, 3, 3]]])
        kernel = Kernel("TRITON", sms=2, columns=(64, 32), tilings=(Tiling(8, 16, 16),))
        log = run_dir / "baseline" / "gate_logs" / "dp0_pp0.gatelog"
        log.unlink()
        write_log(log, loads, kernel=kernel)
        assert cli.main(["export", str(run_dir), "--layout", "parquet", "-o", str(tmp_path)]) == 0
        (step,) = files.read_table(tmp_path / "steps.parquet").to_pylist()
        assert (step["busiest_active"], step["busiest_tiles"], step["busiest_tokens"]) == (3, 3, 16)
        assert (step["busiest_first_waves"], step["busiest_second_waves"]) == (6, 3)
        assert step["busiest_padded"] == 32
        fair = work.fair_amounts(np.array([8]), 4, 2, (), kernel)[0]
        assert step["work_over_fair"] == pytest.approx((6 * 32 + 3 * 32) / fair)

    def test_unknown_work_is_null(self, run_dir: Path, tmp_path: Path) -> None:
        files = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
        assert cli.main(["export", str(run_dir), "--layout", "parquet", "-o", str(tmp_path)]) == 0
        step = files.read_table(tmp_path / "steps.parquet").to_pylist()[0]
        assert step["busiest_active"] > 0
        assert step["busiest_tiles"] is step["work_over_fair"] is None

    def test_tables_hold_what_the_log_does(self, run_dir: Path, tmp_path: Path) -> None:
        files = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
        assert cli.main(["export", str(run_dir), "--layout", "parquet", "-o", str(tmp_path)]) == 0
        runs, steps, loads = (
            files.read_table(tmp_path / f"{name}.parquet").to_pylist()
            for name in ("runs", "steps", "loads")
        )
        assert [(r["backend"], r["dataset"], r["mean_tpot_ms"]) for r in runs] == [
            ("baseline", "001", 12.5),
            ("baseline", "002-r2", 12.5),
        ]
        log = gate_folder.read(run_dir / "baseline" / "gate_logs")
        assert [(s["dataset"], s["index"], s["tokens"]) for s in steps] == [
            *(("001", i, 8) for i in (1, 2, 3)),
            *(("002-r2", i, 8) for i in (4, 5)),
        ]
        x = log.loads.astype(float)
        cv = (x.std(axis=-1) / x.mean(axis=-1)).mean(axis=1)
        assert [s["cv"] for s in steps] == pytest.approx(cv[1:])
        assert [s["expert_max_mean"] for s in steps] == pytest.approx(
            (x.max(axis=-1) / x.mean(axis=-1)).mean(axis=1)[1:]
        )
        assert [s["rank_max_mean"] for s in steps] == [None] * 5
        assert [r["loads"] for r in loads] == log.loads[1:].reshape(10, 4).tolist()
        assert [(r["index"], r["layer"]) for r in loads] == [
            (i, layer) for i in range(1, 6) for layer in range(2)
        ]

    def test_a_run_that_was_begun_anew_is_the_later_starts(
        self, run_dir: Path, tmp_path: Path
    ) -> None:
        files = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
        for start, tokens in ((2, 7), (10, 9)):
            again = routed(np.random.default_rng(2), [tokens] * 3, 2, np.ones(4))
            folder = run_dir / "baseline" / f"gate_logs-start{start}"
            write_log(folder / "dp0_pp0.gatelog", again, labels=["002-r2"] * 3)
        assert cli.main(["export", str(run_dir), "--layout", "parquet", "-o", str(tmp_path)]) == 0
        steps = files.read_table(tmp_path / "steps.parquet").to_pylist()
        assert [(s["dataset"], s["tokens"]) for s in steps] == [("001", 8)] * 3 + [
            ("002-r2", 9)
        ] * 3
        measured, _ = measured_folder.measure_folder(run_dir / "baseline")
        assert measured["gates_logs_002-r2"].tokens == 27

    def test_what_it_needs_is_said(
        self, run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        assert cli.main(["export", str(run_dir), "--layout", "parquet"]) == 2
        assert "needs pyarrow" in capsys.readouterr().err


def test_no_run_directory_is_refused(tmp_path: Path) -> None:
    assert cli.main(["export", str(tmp_path), "--layout", "upstream"]) == 2
