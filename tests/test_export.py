"""A run directory in other layouts, through the command."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from synthetic import routed, write_log

from core import cli


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    made = tmp_path / "run"
    (made / "baseline" / "results_json").mkdir(parents=True)
    (made / "run.json").write_text(json.dumps({"backends": ["baseline"], "engine": "test"}))
    for label in ("001", "002-r2"):
        (made / "baseline" / "results_json" / f"{label}.json").write_text('{"mean_tpot_ms": 12.5}')
    (made / "baseline_real_imbalance.json").write_text('{"gates_logs_001": 0.4}')
    loads = routed(np.random.default_rng(0), [8] * 6, 2, np.ones(4))
    labels = ["warmup", "001", "001", "001", "002-r2", "002-r2"]
    write_log(made / "baseline" / "gate_logs" / "dp0_pp0.gatelog", loads, labels=labels)
    return made


def test_upstreams_layout_measures_as_the_run_did(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(run_dir), "--layout", "upstream"]) == 0
    out = run_dir / "export"
    assert (out / "baseline" / "results_json" / "001.json").is_file()
    assert (out / "baseline_real_imbalance.json").is_file()
    assert sorted(p.name for p in (out / "baseline" / "gate_logs").iterdir()) == ["gates_logs_01", "gates_logs_02-r2"]
    capsys.readouterr()
    both = []
    for folder in (run_dir / "baseline" / "gate_logs", out / "baseline" / "gate_logs"):
        assert cli.main(["imbalance", str(folder), "--method", "per-step", "--json"]) == 0
        both.append(list(json.loads(capsys.readouterr().out).values()))
    assert both[0] == pytest.approx(both[1])


def test_parquet_or_what_it_needs(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["export", str(run_dir), "--layout", "parquet", "-o", str(tmp_path / "tables")])
    if importlib.util.find_spec("pyarrow"):
        assert code == 0
        assert (tmp_path / "tables" / "steps.parquet").is_file()
    else:
        assert code == 2
        assert "needs pyarrow" in capsys.readouterr().err


def test_no_run_directory_is_refused(tmp_path: Path) -> None:
    assert cli.main(["export", str(tmp_path), "--layout", "upstream"]) == 2
