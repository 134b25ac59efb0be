"""Findings and the report, through the command: of a real batch, and of run directories with
planted effects."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support import undrawn
from support.place import Place

from core.analysis import findings
from core.analysis import results as analysis
from tui.model import details

ROOT = Path(__file__).parents[2]
ROUTING = ("heatmap", "cv-over-time", "rank-load")
SCATTERS = {
    f"graphs/{metric}.png" for metric in ("mean_ttft_ms", "mean_tpot_ms", "output_throughput")
}
Planted = Callable[[float], float]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A batch of two datasets at two backends of the built-in engine, of prompts that differ
    enough for an excess to be seen."""
    place = Place(tmp_path_factory.mktemp("report"))
    queries = json.loads((ROOT / "datasets" / "domain_queries.json").read_text())
    for index in (1, 2):
        place.write_dataset(index, [texts[index] for texts in list(queries.values())[:12]])
    done = place.gatescope("--batch", "--out", "made")
    assert done.returncode == 0, done.stderr
    (place.folder / "stderr.txt").write_text(done.stderr)
    return place


@pytest.fixture(scope="module")
def reported(ran: Place) -> Place:
    """The same after `gatescope report`."""
    done = ran.gatescope("report", ran.made)
    assert done.returncode == 0, done.stderr
    return ran


def planted(ran: Place, folder: Path, tpot: Planted, other: float, n: int = 24) -> Path:
    """The batch's directory with n datasets, whose TPOT is `tpot` of the excess CV², `other` times
    that at all2all."""
    shutil.copytree(ran.made, folder)
    rng = np.random.default_rng(8)
    for place, cv in enumerate(rng.uniform(0.2, 1.0, n), 1):
        for backend, factor in (("baseline", 1.0), ("all2all", other)):
            result = json.loads((ran.made / backend / "results_json" / "001.json").read_text())
            result["measured_imbalance"]["excess_cv"] = cv**0.5
            result["measured_imbalance"]["excess_squared"] = cv
            result["measured_imbalance"]["intervals"] |= {
                "excess_cv": [(cv - 0.05) ** 0.5, (cv + 0.05) ** 0.5],
                "excess_squared": [cv - 0.05, cv + 0.05],
            }
            result |= {
                "ttfts": [],
                "itls": [],
            }  # of no request, which planted means would contradict
            result["mean_tpot_ms"] = factor * tpot(cv) * float(np.exp(rng.normal(0, 0.02)))
            result["mean_ttft_ms"] = float(rng.uniform(90, 110))
            result["output_throughput"] = float(rng.uniform(90, 110))
            result["total_input_tokens"] = int(rng.integers(1000, 2000))
            (folder / backend / "results_json" / f"{place:03d}.json").write_text(json.dumps(result))
    return folder


def share_out(run_dir: Path, starts: int) -> None:
    """Give the results of each backend to `starts` server starts in turn."""
    for backend in ("baseline", "all2all"):
        files = sorted((run_dir / backend / "results_json").glob("*.json"))
        for place, file in enumerate(files):
            result = json.loads(file.read_text()) | {"start": place % starts + 1}
            file.write_text(json.dumps(result))


class TestAfterABatch:
    def test_two_datasets_are_too_few_to_say(self, ran: Place) -> None:
        told = (ran.folder / "stderr.txt").read_text()
        assert "baseline against excess CV²: n = 2: too few to say; 8 are needed" in told
        assert (
            "all2all against baseline: 1 + 1 starts, each of 2 datasets\none start each:"
            " how much a restart moves it is not known (elsewhere about 1.3 %)\n" in told
        )
        (row,) = [line for line in told.splitlines() if line.startswith("  TPOT *")]
        assert row.endswith("inconclusive  2+ starts")

    def test_findings_are_kept_as_json(self, ran: Place) -> None:
        kept = json.loads((ran.made / "findings.json").read_bytes())
        assert [row["association"]["spearman"]["value"] for row in kept["associations"]] == [
            None
        ] * 6
        too_few = "n = 2: too few to say; 8 are needed"
        assert kept["sentences"][0] == (
            f"TTFT, TPOT, throughput of baseline and all2all against excess CV²: {too_few}"
        )
        assert len(kept["sentences"]) == 1 + 3
        assert any("say nothing about GPUs" in caveat for caveat in kept["caveats"])

    def test_what_routing_costs_is_kept_and_on_the_findings_screen(self, ran: Place) -> None:
        kept = json.loads((ran.made / "findings.json").read_bytes())["routing_cost"]
        assert [one["backend"] for one in kept] == ["baseline", "all2all"]
        shown = [text for text, _ in details.findings(ran.made)]
        said = shown[shown.index("What routing costs a decode step") + 1 :]
        for one in kept:
            why, by = one["model"]["reason"], one["model"]["by"]
            head = f"· {one['backend']}, decode steps"
            wanted = f"{head}: no cost model: {why}" if why else f"{head}, by {by}"
            assert any(line.startswith(wanted) for line in said), said


class TestReport:
    def test_it_says_what_ran_and_how_to_repeat_it(self, reported: Place) -> None:
        text = (reported.made / "report.md").read_text()
        for part in (
            "## Findings",
            "## What ran",
            "## Results",
            "## What the router did",
            "## Left out, and why",
            "## To repeat it",
        ):
            assert part in text
        assert "engine: builtin (NumPy, CPU); model: gatescope-tiny-mixtral; started" in text
        assert "they say nothing about GPUs" in text
        assert f"gatescope --batch --config {reported.folder / 'experiments.toml'}" in text
        linked = re.findall(r"\]\((graphs/[^)]*)\)", text)
        assert linked[0] == "graphs/ecdf.png"
        assert {re.sub("-(real|excess)", "", file) for file in linked[1:4]} == SCATTERS
        assert linked[4:] == [f"graphs/{name}.png" for name in ROUTING]
        assert all((reported.made / file).is_file() for file in linked)

    def test_random_weights_are_named_and_stay_a_cpus(self, tmp_path: Path) -> None:
        place = Place(tmp_path)
        (tmp_path / "experiments.toml").write_text(
            place.config.replace("[model]", '[model]\nweights = "random"')
        )
        done = place.gatescope("--batch", "--out", "made", "--only", "001")
        engine = "engine: builtin (NumPy, CPU), random weights"
        assert f"{engine}: its times say nothing about GPUs" in done.stderr
        text = undrawn.report(place.made)
        assert f"{engine}; model: gatescope-tiny-mixtral; started" in text
        assert text.count("say nothing about GPUs") == 1
        assert "weights random" in text

    def test_every_measure_of_the_router_is_told(self, reported: Place) -> None:
        text = (reported.made / "report.md").read_text()
        results = [
            json.loads(f.read_text())
            for f in sorted((reported.made / "all2all" / "results_json").glob("*.json"))
        ]
        measured = [result["measured_imbalance"] for result in results]
        decode = {
            key: float(np.median([m["decode"][key] for m in measured]))
            for key in ("per_step_cv", "layer_cv")
        }
        row = next(line for line in text.splitlines() if line.startswith("| all2all | decode |"))
        assert f"| {decode['per_step_cv']:.3f} |" in row
        assert f"| {decode['layer_cv']:.3f} |" in row
        row = next(
            line
            for line in text.splitlines()
            if line.startswith("| all2all | ") and line.count("|") == 7
        )
        median = {
            k: float(np.median([m[k] for m in measured]))
            for k in ("entropy", "gini", "hottest_share")
        }
        assert (
            f"| {100 * median['hottest_share']:.1f} | {median['entropy']:.3f} |"
            f" {median['gini']:.3f} |" in row
        )
        assert re.search(r"all2all: CV by layer \S+ to \S+; most in layers \d+ \(", text)
        ends = measured[0]["intervals"]["excess_cv"]
        shown = f"{measured[0]['excess_cv']:.3f} [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "–"
        assert re.search(rf"\| 001 \|.* {re.escape(shown)} \|", text)

    def test_the_busiest_ranks_work_is_told(self, reported: Place) -> None:
        """The built-in engine has no tiles, and says so; active experts are known."""
        text = (reported.made / "report.md").read_text()
        results = (reported.made / "all2all" / "results_json").glob("*.json")
        phases = [json.loads(f.read_text())["measured_imbalance"]["decode"] for f in results]
        active = np.median([phase["busiest_rank"]["active_experts"] for phase in phases])
        assert 1 <= active <= 4
        assert f"| all2all | decode | {active:.2f} | – | – | – | – | – |" in text
        assert "all2all: the kernel, NumPy, publishes no tiling." in text
        kernel = json.loads((reported.made / "run.json").read_text())["servers"]["all2all"][
            "kernel"
        ]
        assert (kernel["name"], kernel["experts"], kernel["columns"]) == ("NumPy", 8, [576, 128])
        assert kernel["local_experts"] == 8 // 2

    def test_the_summary_has_a_column_for_each(self, ran: Place) -> None:
        with open(ran.made / "summary.csv") as file:
            row = next(r for r in csv.DictReader(file) if r["backend"] == "all2all")
        result = json.loads(
            (ran.made / "all2all" / "results_json" / f"{row['dataset']}.json").read_text()
        )
        measured = result["measured_imbalance"]
        assert float(row["gini"]) == measured["gini"]
        assert float(row["decode_excess_cv"] or "nan") == pytest.approx(
            measured["decode"]["excess_cv"] or np.nan, nan_ok=True
        )
        assert row["placement"] == "linear"
        assert row["kernel"] == "NumPy, no published tiling"
        busiest = measured["decode"]["busiest_rank"]
        assert float(row["decode_active_experts"]) == busiest["active_experts"]
        assert row["decode_work_over_fair"] == ""
        assert [row["excess_cv_low"], row["excess_cv_high"]] == [
            str(x) for x in measured["intervals"]["excess_cv"] or ("", "")
        ]

    def test_the_page_needs_no_other_file(self, reported: Place) -> None:
        page = (reported.made / "report.html").read_text()
        sources = re.findall(r'(?:src|srcset)="([^"]{0,30})', page)
        assert len(sources) == 2 * (4 + len(ROUTING))  # each also as it is drawn for a phone
        assert all(source.startswith("data:image/png;base64,") for source in sources)

    def test_a_planted_effect_is_found_and_the_backends_are_told_apart(
        self, ran: Place, tmp_path: Path
    ) -> None:
        run_dir = planted(ran, tmp_path / "run", lambda cv: 10 + 10 * cv, 1.18)
        text = undrawn.report(run_dir)
        told = re.search(
            r"all2all TPOT is (\S+) % higher than baseline's on 24 datasets: no interval", text
        )
        assert told
        assert 15 < float(told[1]) < 21
        change = re.search(
            r"baseline TPOT rises with excess CV² \(over the middle 80 % of the datasets it rises"
            r" by (\S+) and TPOT changes by \S+ \[\+\S+, \+\S+\] %, (\S+) ms: larger; Spearman",
            text,
        )
        assert change
        assert float(change[2]) / float(change[1]) == pytest.approx(10, rel=0.1)

    def test_no_effect_is_reported_as_none(self, ran: Place, tmp_path: Path) -> None:
        run_dir = planted(ran, tmp_path / "run", lambda _: 10.0, 1.0)
        text = undrawn.report(run_dir)
        assert "no association of baseline TPOT with excess CV² is detected" in text
        assert "no difference is seen" not in text
        assert " rises with" not in text
        assert " falls with" not in text

    def test_what_has_no_excess_cv_is_left_out_with_its_reason(
        self, ran: Place, tmp_path: Path
    ) -> None:
        run_dir = planted(ran, tmp_path / "run", lambda cv: 10 + cv, 1.0, n=9)
        file = run_dir / "baseline" / "results_json" / "003.json"
        result = json.loads(file.read_text())
        result["measured_imbalance"] |= {
            "excess_cv": None,
            "excess_squared": None,
            "excess_cv_reason": "too few <steps>",
        }
        file.write_text(json.dumps(result))
        text = undrawn.report(run_dir)
        assert r"baseline/003: no excess CV²: too few \<steps>" in text
        assert (
            "baseline/003: no excess CV²: too few &lt;steps&gt;"
            in (run_dir / "report.html").read_text()
        )
        assert "n = 8 datasets" in text

    def test_repeats_of_a_dataset_count_once(self, ran: Place, tmp_path: Path) -> None:
        run_dir = planted(ran, tmp_path / "run", lambda cv: 10 + cv, 1.0, n=7)
        for backend in ("baseline", "all2all"):
            folder = run_dir / backend / "results_json"
            shutil.copy(folder / "001.json", folder / "001-r2.json")
        text = undrawn.report(run_dir)
        assert "baseline TPOT against excess CV²: n = 7: too few to say" in text
        assert "than baseline's on 7 datasets × 1–2 repeats: no interval: one start each" in text

    def test_backends_of_several_starts_get_a_verdict(self, ran: Place, tmp_path: Path) -> None:
        run_dir = planted(ran, tmp_path / "run", lambda cv: 10 + cv, 1.18, n=6)
        share_out(run_dir, starts=3)
        told = re.search(
            r"all2all TPOT is \S+ % higher than baseline's \[\+(\S+), \+(\S+)\] %,"
            r" 3 \+ 3 starts, which share 6 datasets: larger than 2 %\n",
            undrawn.report(run_dir),
        )
        assert told
        assert float(told[1]) <= 18 <= float(told[2])

    def test_what_was_registered_is_said_and_what_was_changed_since(
        self, ran: Place, tmp_path: Path
    ) -> None:
        run_dir = planted(ran, tmp_path / "run", lambda cv: 10 + cv, 1.15, n=6)
        share_out(run_dir, starts=3)
        asked = "registered first: TPOT, all2all against baseline; smallest effect 2 %"
        text = undrawn.report(run_dir)
        assert asked in text
        assert "changed after" not in text
        about = json.loads((run_dir / "run.json").read_text())
        about["registered"] |= {"smallest_effect_pct": 9.0, "metric": "mean_ttft_ms"}
        (run_dir / "run.json").write_text(json.dumps(about))
        text = undrawn.report(run_dir).replace("\\", "")
        assert (
            "changed after the first run began, and not followed: metric: mean_tpot_ms →"
            " mean_ttft_ms; smallest_effect_pct: 2 → 9 (run.json)" in text
        )
        assert ": larger than 2 %" in text

    def test_backends_that_took_turns_are_not_said_to_have_run_one_after_the_other(
        self, ran: Place, tmp_path: Path
    ) -> None:
        run_dir = planted(ran, tmp_path / "run", lambda _: 10.0, 1.0, n=9)
        assert (
            findings.ORDER in findings.find(analysis.of_run_directory(run_dir)[0], "vllm").caveats
        )
        file = run_dir / "baseline" / "results_json" / "009.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "date": "99991231-235959"}))
        assert findings.find(analysis.of_run_directory(run_dir)[0], "vllm").caveats == []

    def test_what_is_no_run_directory_is_refused(self, ran: Place, tmp_path: Path) -> None:
        done = ran.gatescope("report", tmp_path)
        assert done.returncode == 2
        assert "not a run directory" in done.stderr
