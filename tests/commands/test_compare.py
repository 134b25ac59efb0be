"""`gatescope compare`, by its output and its exit code, on run directories with known figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.sweep import simulated
from core import cli
from core.analysis import gate
from core.errors import UsageError
from core.experiment.tables import Backend, Model, Slo

Starts = dict[int, dict[str, list[float]]]
GATE = "mean_tpot_ms<=+2%"


def starts(*means: float) -> Starts:
    """Two datasets a start, one twice as slow as the other, about these means."""
    return {n: {"001": [2 * m / 3], "002": [4 * m / 3]} for n, m in enumerate(means, 1)}


def directory(path: Path, *means: float, **more: Any) -> Path:
    return simulated.write(path, {"baseline": starts(*means)}, **more)


def compared(
    capsys: pytest.CaptureFixture[str], *arguments: str | Path
) -> tuple[int, dict[str, Any]]:
    code = cli.main(["compare", *map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


class TestGate:
    """Three starts each, which vary by 0.1 %, so that an interval is about ±0.3 %."""

    @pytest.mark.parametrize(
        ("change", "code", "answer"),
        [
            (1.10, 1, "failed"),
            (1.00, 0, "passed"),
            (0.90, 0, "passed"),
            (1.02, 0, "inconclusive"),
        ],
    )
    def test_it_fails_only_where_the_interval_lies_beyond(
        self,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        change: float,
        code: int,
        answer: str,
    ) -> None:
        before = directory(tmp_path / "a", 10.0, 10.01, 9.99)
        after = directory(tmp_path / "b", *(change * m for m in (10.0, 9.99, 10.01)))
        ended, found = compared(capsys, before, after, "--gate", GATE)
        (ruled,) = found["comparisons"][0]["gates"]
        assert (ended, ruled["answer"]) == (code, answer)
        assert ruled["change_pct"] == pytest.approx(100 * (change - 1), abs=0.01)
        low, high = ruled["interval_pct"]
        assert high - low == pytest.approx(0.453 * change, rel=0.02)  # 2 · 2.776 · 0.1 % · √(2/3)
        strict, _ = compared(capsys, before, after, "--gate", GATE, "--strict")
        assert strict == int(answer != "passed")

    def test_a_gate_from_below(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        before = directory(tmp_path / "a", 10.0, 10.01)
        after = directory(tmp_path / "b", 12.0, 12.01)
        limits = ("--gate", "output_throughput>=-2%", "--gate", "output_throughput<=+2%")
        code, found = compared(capsys, before, after, *limits)
        answers = [ruled["answer"] for ruled in found["comparisons"][0]["gates"]]
        assert (code, answers) == (1, ["failed", "passed"])

    def test_one_start_is_inconclusive(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before, after = directory(tmp_path / "a", 10.0), directory(tmp_path / "b", 20.0)
        code, found = compared(capsys, before, after, "--gate", GATE)
        (ruled,) = found["comparisons"][0]["gates"]
        assert (code, ruled["answer"], ruled["interval_pct"]) == (0, "inconclusive", None)
        assert ruled["change_pct"] == pytest.approx(100)
        assert "one start each" in ruled["reason"]

    @pytest.mark.parametrize("text", ["mean_tpot_ms", "mean_tpot_ms<2%", "speed<=1%", "errors<=x%"])
    def test_what_is_no_gate_is_refused(self, text: str) -> None:
        with pytest.raises(UsageError, match="--gate"):
            gate.parse(text)

    def test_more_pairs_make_wider_intervals(self) -> None:
        limit = gate.parse(GATE)
        sides = (starts(10.0, 10.01), starts(10.0, 10.02))
        one, four = (gate.rule(limit, "p", sides, pairs).interval_pct for pairs in (1, 4))
        assert one
        assert four
        assert four[0] < one[0] < one[1] < four[1]


class TestPairs:
    def test_cells_are_paired_by_what_they_are(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The names are swapped; a new key differs in both."""

        def folder(name: str, **limits: int) -> Path:
            backends = [
                Backend(name=n, max_num_seqs=s, eplb=name == "b") for n, s in limits.items()
            ]
            values = {n: starts(10.0, 10.1) for n in limits}
            return simulated.write(tmp_path / name, values, simulated.config_of(backends))

        before, after = folder("a", x=8, y=32), folder("b", x=32, y=8)
        _, found = compared(capsys, before, after)
        pairs = found["comparisons"][0]["pairs"]
        assert [(p["before"], p["after"]) for p in pairs] == [("x", "y"), ("y", "x")]
        for pair in pairs:
            assert [d["what"] for d in pair["differences"]] == ["eplb"]

    def test_a_cell_without_a_counterpart_is_named(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = directory(tmp_path / "a", 10.0, 10.1)
        values = {"baseline": starts(10.0, 10.1), "new": starts(9.0, 9.1)}
        backends = [Backend(name="baseline"), Backend(name="new", tensor_parallel=2)]
        after = simulated.write(tmp_path / "b", values, simulated.config_of(backends))
        _, found = compared(capsys, before, after)
        assert found["comparisons"][0]["unpaired"] == ["new"]

    def test_datasets_are_paired_by_their_texts(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Dataset 002 is called 004 on the later side, whose 001 has other prompts."""
        before = directory(tmp_path / "a", 10.0, 10.1)
        after = directory(tmp_path / "b", 10.0, 10.1)
        for file in sorted((after / "baseline" / "results_json").iterdir(), reverse=True):
            kept = json.loads(file.read_text())
            if file.stem.startswith("001"):
                kept["input_lens"] = [5, 5]
                file.write_text(json.dumps(kept))
            else:
                file.rename(file.with_name(file.name.replace("002", "004")))
        _, found = compared(capsys, before, after)
        (pair,) = found["comparisons"][0]["pairs"]
        assert pair["datasets"] == {"002": "004"}
        assert pair["left_out"] == ["001: its prompts are not the same"]
        tpot = next(m for m in pair["metrics"] if m["metric"] == "mean_tpot_ms")
        assert (tpot["n"], tpot["starts"]) == (1, [2, 2])

    @pytest.mark.parametrize("what", ["load", "model", "engine", "datasets"])
    def test_what_cannot_be_compared_is_not(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
    ) -> None:
        backends, more = [Backend(name="baseline")], {}
        config = simulated.config_of(backends)
        values = {"baseline": starts(20.0, 20.1)}
        if what == "load":
            config = simulated.config_of(backends, output_len=100)
        elif what == "model":
            config = type(config)(
                **{k: getattr(config, k) for k in config.__struct_fields__}
                | {"model": Model(id="b")}
            )
        elif what == "engine":
            more = {"engine_kind": "vllm"}
        else:
            values = {"baseline": {n: {"009": [20.0]} for n in (1, 2)}}
        before = directory(tmp_path / "a", 10.0, 10.1)
        after = simulated.write(tmp_path / "b", values, config, **more)
        code, found = compared(capsys, before, after, "--gate", GATE)
        (pair,) = found["comparisons"][0]["pairs"]
        assert pair["not_comparable"].startswith("not comparable: ")
        assert pair["metrics"] == pair["routing"] == []
        (ruled,) = found["comparisons"][0]["gates"]
        assert (code, ruled["answer"], ruled["change_pct"]) == (0, "inconclusive", None)

    def test_versions_and_machines_that_differ_come_first(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = directory(tmp_path / "a", 10.0, 10.1, gpus=["0 H200"])
        after = directory(tmp_path / "b", 10.0, 10.1, gpus=["0 H100"], python="3.12")
        assert cli.main(["compare", str(before), str(after)]) == 0
        page = capsys.readouterr().out
        told = [line for line in page.splitlines() if "→" in line]
        assert told == [
            "- versions and machine: version of Python: 3.11 → 3.12",
            "- versions and machine: GPUs: 0 H200 → 0 H100",
        ]
        assert page.index(told[1]) < page.index("| metric |")
        assert "Intervals rest on server starts: 2 + 2 starts, each of 2 datasets." in page


def test_what_is_invalid_comes_first_and_fails_a_strict_gate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = directory(tmp_path / "a", 10.0, 10.01)
    after = directory(tmp_path / "b", 9.0, 9.01)
    (after / "baseline" / "results_json" / "003.json").write_text("[")
    code, found = compared(capsys, before, after, "--gate", GATE)
    (said,) = found["comparisons"][0]["invalid"]
    assert code == 0
    assert said.startswith(f"{after}: ")
    assert "readable results" in said
    assert compared(capsys, before, after, "--gate", GATE, "--strict")[0] == 1
    assert cli.main(["compare", str(before), str(after), "--gate", GATE]) == 0
    page = capsys.readouterr().out
    assert page.index("## Invalid") < page.index("## Gates") < page.index("## What differs")


def test_tails_and_goodput_are_compared_where_they_mean_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def folder(name: str, change: float, limit: float) -> Path:
        backend = Backend(name="baseline")
        config = simulated.config_of([backend], slo=Slo(ttft_ms=limit))
        made = simulated.write(tmp_path / name, {"baseline": starts(10.0, 10.01)}, config)
        for file in (made / "baseline" / "results_json").iterdir():
            kept = json.loads(file.read_text())
            known = {f"p99_{key}_ms": 30.0 * change for key in ("ttft", "tpot", "itl", "e2e")}
            file.write_text(json.dumps(kept | known | {"request_goodput": 5.0 / change}))
        return made

    before = folder("a", 1.0, 500)
    _, found = compared(capsys, before, folder("b", 1.25, 500))
    (pair,) = found["comparisons"][0]["pairs"]
    ratios = {m["metric"]: m["ratio"]["value"] for m in pair["metrics"]}
    for key in ("ttft", "tpot", "itl", "e2e"):
        assert ratios[f"p99_{key}_ms"] == pytest.approx(1.25)
    assert ratios["request_goodput"] == pytest.approx(0.8)
    gate = ("--gate", "request_goodput>=-2%")
    code, found = compared(capsys, before, folder("c", 1.25, 400), *gate)
    (pair,) = found["comparisons"][0]["pairs"]
    assert "request_goodput" not in {m["metric"] for m in pair["metrics"]}
    assert [d["what"] for d in pair["differences"]] == ["ttft_ms"]
    assert (code, found["comparisons"][0]["gates"][0]["answer"]) == (0, "inconclusive")


def test_sweeps_are_compared_cell_by_cell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def sweep(name: str, change: float) -> Path:
        cells = {}
        for seqs in (8, 32):
            config = simulated.config_of([Backend(name="baseline", max_num_seqs=seqs)])
            values = {"baseline": starts(*(seqs * change * m for m in (1.0, 1.001, 0.999)))}
            cells[f"baseline,max_num_seqs={seqs}"] = (config, values)
        return simulated.sweep(tmp_path / name, cells)

    code, found = compared(capsys, sweep("a", 1.0), sweep("b", 1.1), "--gate", GATE)
    gates = found["comparisons"][0]["gates"]
    assert (code, [ruled["answer"] for ruled in gates]) == (1, ["failed", "failed"])
    assert [ruled["pair"] for ruled in gates] == [
        "baseline,max_num_seqs=8",
        "baseline,max_num_seqs=32",
    ]


FILES = {
    "vllm.json": {
        "mean_ttft_ms": 60.0,
        "mean_tpot_ms": 10.5,
        "mean_itl_ms": 10.4,
        "mean_e2el_ms": 700.0,
        "request_throughput": 2.0,
        "output_throughput": 100.0,
        "input_lens": [3],
    },
    "guidellm.json": {
        "benchmarks": [
            {
                "metrics": {
                    "time_to_first_token_ms": {"successful": {"mean": 58.0}},
                    "inter_token_latency_ms": {"successful": {"mean": 10.2}},
                    "time_per_output_token_ms": {"successful": {"mean": 12.0}},
                    "request_latency": {"successful": {"mean": 0.71}},
                    "output_tokens_per_second": {"successful": {"mean": 99.0}},
                    "requests_per_second": {"successful": None},
                }
            }
        ]
    },
    "aiperf.json": {
        "time_to_first_token": {"unit": "ms", "avg": 61.0},
        "inter_token_latency": {"unit": "ms", "avg": 10.1},
        "request_latency": {"unit": "ms", "avg": 705.0},
        "output_token_throughput": {"unit": "tokens/sec", "avg": 98.0},
    },
}
READ = (
    ("gatescope", {"mean_tpot_ms": 10.05, "output_throughput": 111.95}),
    (
        "vllm bench",
        {
            "mean_ttft_ms": 60.0,
            "mean_tpot_ms": 10.5,
            "mean_itl_ms": 10.4,
            "mean_e2e_ms": 700.0,
            "output_throughput": 100.0,
            "request_throughput": 2.0,
        },
    ),
    (
        "guidellm",
        {
            "mean_ttft_ms": 58.0,
            "mean_tpot_ms": 10.2,
            "mean_e2e_ms": 710.0,
            "output_throughput": 99.0,
        },
    ),
    (
        "aiperf",
        {
            "mean_ttft_ms": 61.0,
            "mean_tpot_ms": 10.1,
            "mean_e2e_ms": 705.0,
            "output_throughput": 98.0,
        },
    ),
)


class TestAlso:
    """Files in the layouts that vllm 0.25, guidellm 0.8 and aiperf 0.13 document."""

    def test_peers_results_stand_beside_ours(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        mine = directory(tmp_path / "a", 10.0, 10.1)
        also: list[str | Path] = []
        for name, content in FILES.items():
            (tmp_path / name).write_text(json.dumps(content))
            also += ["--also", tmp_path / name]
        code, found = compared(capsys, mine, *also)
        assert code == 0
        rows = found["also"]
        assert [row["tool"] for row in rows] == [tool for tool, _ in READ]
        for row, (_, figures) in zip(rows, READ, strict=True):
            assert row["figures"] == pytest.approx(figures, rel=1e-3)
        assert cli.main(["compare", str(mine), *map(str, also)]) == 0
        page = capsys.readouterr().out
        assert "guidellm: TPOT here is its inter\\_token\\_latency" in page

    def test_what_no_tool_wrote_is_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "x.json").write_text('{"benchmarks": []}')
        mine = directory(tmp_path / "a", 10.0)
        assert cli.main(["compare", str(mine), "--also", str(tmp_path / "x.json")]) == 2
        assert "expected a result of vllm bench serve" in capsys.readouterr().err


def test_one_directory_alone_is_no_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", str(directory(tmp_path / "a", 10.0))]) == 2
    assert "two directories or more" in capsys.readouterr().err
