from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.truth import Truth

from core import cli


def written(path: Path, *lines: Any) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return written(
        tmp_path / "007_0.5.jsonl", *({"id": f"q{i}", "text": f"What is {i}?"} for i in range(6))
    )


def bench(truth: Truth, data: Path, *flags: str) -> int:
    return cli.main(
        ["bench", str(data), "--base-url", truth.url + "/v1", "--output-len", "6", *flags]
    )


def test_a_result_file_of_the_dataset_s_index_each_prompt_once(
    truth: Truth, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        bench(truth, prompts, "--num-prompts", "4", "--result-dir", str(tmp_path / "out"), "--json")
        == 0
    )
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["007.json"]
    result = json.loads((tmp_path / "out" / "007.json").read_text())
    said = capsys.readouterr()
    assert json.loads(said.out) == result
    assert (result["model_id"], result["num_prompts"], result["completed"]) == ("truth", 4, 4)
    assert (result["p99_ttft_ms"], result["p99_ttft_ms_reason"]) == (
        None,
        "n = 4, and a p99 needs 100",
    )
    assert result["max_ttft_ms"] >= result["median_ttft_ms"] >= 5.0
    assert result["client"]["workers"] == 1
    assert "4 of 4 requests" in said.err
    assert sorted(row["prompt_head"] for row in truth.rows().values()) == [
        f"What is {i}?" for i in range(4)
    ]


def test_a_hundred_requests_bound_the_p99_from_below(
    truth: Truth, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ({"id": f"q{i}", "text": f"What is {i}?"} for i in range(100))
    assert (
        bench(truth, written(tmp_path / "001.jsonl", *rows), "--num-prompts", "100", "--json") == 0
    )
    said = capsys.readouterr()
    low, high = json.loads(said.out)["p99_ttft_ms_interval"]
    assert high is None
    assert f"p99, 95 % interval over requests: TTFT from {low:.2f}; " in said.err


def test_chat_a_rate_slo_and_warm_up(
    truth: Truth, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        "--chat",
        "--request-rate",
        "500",
        "--arrival",
        "constant",
        "--slo",
        "ttft_ms=60000,tpot_ms=60000",
    ]
    truth.control(itl_ms=100.0)  # an answer that came in one read has no TPOT
    assert bench(truth, prompts, *flags, "--warmup", "2", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["endpoint"], result["completed"], len(truth.rows())) == ("chat", 6, 8)
    assert result["request_goodput"] == pytest.approx(result["request_throughput"])
    assert result["slo"] == {"ttft_ms": 60000.0, "tpot_ms": 60000.0}


def test_some_failed(truth: Truth, prompts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth.control(fail_every=3)
    assert bench(truth, prompts) == 1
    assert "4 of 6 requests" in (said := capsys.readouterr().err)
    assert "2 × HTTP 500" in said


def test_a_server_that_is_not_there_is_bad_usage(
    prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = Truth()
    gone.stop()
    assert bench(gone, prompts) == 2
    assert "name one with --model" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        ["--header", "no colon"],
        ["--header", "x-name: Zoë"],
        ["--extra-body", "[1]"],
        ["--slo", "ttft=5"],
        ["--slo", "ttft_ms=-5"],
        ["--ramp-up", "nan"],
        ["--load-workers", "0"],
        ["--burstiness", "0"],
    ],
)
def test_wrong_flags_are_refused(
    flags: list[str], prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["bench", str(prompts), "--port", "1", *flags])
    assert f"argument {flags[0]}: expected" in capsys.readouterr().err


def test_a_trace_without_timestamps_is_refused(
    truth: Truth, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(truth, prompts, "--arrival", "trace") == 2
    assert "007_0.5.jsonl:1: timestamp: expected a number" in capsys.readouterr().err
    assert truth.rows() == {}
