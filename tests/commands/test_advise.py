"""`gatescope advise`: the verdict in words and as JSON, and maps as other projects read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import yaml
from support.synthetic import write_log

from core import cli
from core.analysis.calibration import Calibration
from core.analysis.cost_model import ROWS, CostModel
from core.stats.estimate import Estimate

SKEWED = [8, 4, 1, 3, 0, 0, 0, 0]
HOME = (0, 0, 0, 0, 1, 1, 1, 1)


def logs(folder: Path, loads: list[int], *, steps: int = 300, ranks: int = 2) -> Path:
    """Every third step is a prompt's."""
    whole = np.array([[loads, loads[::-1]]] * steps)
    tokens = sum(loads)
    write_log(
        folder / "gate_logs" / "dp0_pp0.gatelog",
        whole,
        labels=[""] * steps,
        prefill=[tokens if s % 3 == 0 else 0 for s in range(steps)],
        ranks=ranks,
        placement=HOME if ranks > 1 else (),
        top_k=1,
    )
    return folder


def advised(*words: str | Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = cli.main(["advise", *map(str, words)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = advised(logs(tmp_path, SKEWED, steps=450), capsys=capsys)
    assert code == 0
    assert out.splitlines()[:4] == [
        "decode: rebalancing pays",
        "  packed saves 50.00 [50.00, 50.00] % of the busiest ranks' tokens in the MoE layers;"
        " 1 % is what matters",
        "  ranks that all had the same would save 50.0 % of the busiest ones' tokens",
        "  prefill's placement saves 50.00 [50.00, 50.00] % of decode",
    ]
    assert "prefill: 150 steps over 1 s, 2 ranks; savings in % of the busiest" in out
    assert err.count("wrote ") == 3


def read(folder: Path) -> tuple[Any, Any, Any]:
    sglang = json.loads((folder / "sglang.json").read_text())
    tensorrt = yaml.safe_load((folder / "tensorrt-llm.yaml").read_text())
    return sglang, tensorrt, json.loads((folder / "placement.json").read_text())


def test_the_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "maps"
    words = (logs(tmp_path, SKEWED, steps=900), "--spare", "0,4", "-o", out)
    assert advised(*words, capsys=capsys)[0] == 0
    sglang, tensorrt, plain = read(out)
    # as SGLang's ExpertLocationMetadata.init_by_mapping takes it: [layers, physical experts]
    assert set(sglang) == {"physical_to_logical_map"}
    slots = np.array(sglang["physical_to_logical_map"])
    assert slots.shape in {(2, 8), (2, 12)}
    assert all(set(row) == set(range(8)) for row in slots.tolist())
    # as TensorRT-LLM's MoeLoadBalancerConfig: {layer: [slots]}, by rank
    assert set(tensorrt) == {"num_slots", "initial_global_assignments", "layer_updates_per_iter"}
    assert tensorrt["num_slots"] == slots.shape[1]
    assert tensorrt["initial_global_assignments"] == {0: slots[0].tolist(), 1: slots[1].tolist()}
    assert plain["physical_to_logical"] == slots.tolist()
    home = np.array(plain["rank_of_physical"])
    copies = np.bincount(slots[0], minlength=8)
    load = np.array(SKEWED) / copies
    by_rank = [load[slots[0][home == rank]].sum() for rank in (0, 1)]
    assert by_rank == [8, 8]


def test_nothing_is_written_where_it_does_not_pay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = advised(logs(tmp_path, [2] * 8), "--json", capsys=capsys)
    found = json.loads(out)
    assert (code, err, found["verdict"]) == (0, "", "rebalancing does not pay")
    assert found["decode"]["options"][0]["saved"]["value"] == 0
    assert not (tmp_path / "advice").exists()


def test_a_short_log_and_a_phase_without_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = advised(logs(tmp_path, SKEWED, steps=150), capsys=capsys)
    assert code == 0
    assert out.splitlines()[:2] == [
        "decode: cannot tell: record 1 more minute",
        "  128 steps are needed",
    ]


def test_a_calibration_prices_in_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    terms = {"active": Estimate(20.0), "rows": Estimate(5.0)}
    decode = CostModel(phase="decode", by=ROWS, terms=terms)
    prefill = CostModel(phase="prefill", reason="no prompts")
    found = Calibration(backend="b", engine="e", made="now", decode=decode, prefill=prefill)
    file = tmp_path / "calibration.json"
    file.write_bytes(msgspec.json.encode(found))
    words = (logs(tmp_path, SKEWED, steps=450), "--calibration", file)
    code, out, _ = advised(*words, capsys=capsys)
    # of each layer, 4 experts and 16 tokens as it ran: 160 µs, of steps of 1 ms
    assert (code, out.splitlines()[0]) == (0, "decode: rebalancing pays")
    assert " % of the step's time, by the cost model; 1 % is what matters" in out
    # packed: 8 tokens a rank, on 3 experts of the busiest: 100 µs in each of 2 layers
    row = [line for line in out.splitlines() if line.startswith("  packed  ")][-1]
    assert "saves 12.00 [12.00, 12.00] % (0.120 [0.120, 0.120] ms a step)" in row


def test_ranks_that_did_not_run_are_compared_with_linear(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs(tmp_path, SKEWED, ranks=1)
    code, _, err = advised(tmp_path, capsys=capsys)
    assert (code, "give --ranks" in err) == (2, True)
    assert advised(tmp_path, "--ranks", "3", capsys=capsys)[0] == 2
    code, out, _ = advised(tmp_path, "--ranks", "2", "--json", capsys=capsys)
    linear = json.loads(out)["decode"]["options"][0]
    assert (linear["name"], linear["saved"]["value"]) == ("linear", 0)
    assert json.loads(out)["verdict"] == "rebalancing pays"


def test_folders_without_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert advised(tmp_path, capsys=capsys)[0] == 2
    assert advised(logs(tmp_path, SKEWED), "--spare", "1", capsys=capsys)[0] == 2
    assert advised(tmp_path, "--calibration", tmp_path / "none", capsys=capsys)[0] == 2
