"""Some datasets of a run directory alone, by `gatescope report` and `gatescope plot`, where doses
do something else to each of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import undrawn
from support.synthetic import write_log

from core import cli, files
from core.commands.plot import DOSE
from core.experiment import config, events
from core.experiment.dose import Dose
from core.experiment.events import AnyEvent
from core.experiment.plan import Run, label
from core.rundir import provenance

TPOT = {
    "032": (10.0, 10.0, 10.0),
    "256": (20.0, 21.0, 24.0),
}  # by level: a small batch is flat, a large one rises
LEVELS = (0.0, 0.5, 1.0)
STEPS = {"032": 60, "256": 80}
BACKENDS = ("baseline", "all2all")
NOTE = "only dataset 256 (1 of 2)"
UNKNOWN = "gatescope: --only 25: no such dataset; there are 2, from 032 to 256\n"


def result(tpot: float, cv: float, ranks: int) -> dict[str, Any]:
    """Four requests of five tokens."""
    return {
        "num_prompts": 4,
        "completed": 4,
        "total_input_tokens": 40,
        "total_output_tokens": 20,
        "ttfts": [0.05] * 4,
        "itls": [[tpot / 1e3] * 4] * 4,
        "output_lens": [5] * 4,
        "mean_ttft_ms": 50.0,
        "mean_tpot_ms": tpot,
        "decode_step_ms": tpot - 1,
        "output_throughput": 4e3 / tpot,
        "measured_imbalance": {
            "steps": 100,
            "tokens": 400,
            "layers": 1,
            "aggregated_cv": cv,
            "excess_cv": cv,
            "rank_imbalance": 1 + cv,
            "rank_loads": [3, 1] if ranks > 1 else [],
        },
    }


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return made_in(tmp_path)


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A run directory, and the text of its reports: of all, and of each dataset alone."""
    path = made_in(tmp_path_factory.mktemp("reported"))
    return path, {
        "": report(path),
        **{dataset: report(path, "--only", dataset) for dataset in TPOT},
    }


@pytest.fixture
def reports(reported: tuple[Path, dict[str, str]]) -> dict[str, str]:
    return reported[1]


def made_in(tmp_path: Path) -> Path:
    """Two backends, two datasets: natural and hot-rank runs; at all2all, which has two ranks, a
    second natural run of each dataset failed. At baseline a GPU was held back while 032 ran."""
    backends = '[[backends]]\nname = "baseline"\n[[backends]]\nname = "all2all"\nport = 8001'
    (tmp_path / "experiments.toml").write_text(
        f'[experiment]\noutput_len = 5\ndatasets = "experiments.toml"\n{backends}'
    )
    doses = [None, *(Dose("hot-rank", level) for level in LEVELS)]
    path, runs = tmp_path / "run", []
    for backend, ranks in zip(BACKENDS, (1, 2), strict=True):
        for dataset, tpots in TPOT.items():
            for dose, tpot in zip(doses, (tpots[0], *tpots), strict=True):
                runs.append(
                    Run(backend, dataset, label(dataset, 1, dose), f"{dataset}.jsonl", dose)
                )
                made = result(tpot, dose.level if dose else 0.3, ranks)
                files.write_whole(
                    path / backend / "results_json" / f"{runs[-1].label}.json",
                    files.formatted(made),
                )
        log_steps(path / backend / "gate_logs" / "dp0_pp0.gatelog", ranks)
    failed = [Run("all2all", dataset, label(dataset, 2), f"{dataset}.jsonl") for dataset in TPOT]
    about = provenance.describe(
        config.load(tmp_path / "experiments.toml"), [*runs, *failed], "vllm", "vllm"
    )
    (path / "run.json").write_bytes(files.formatted(about))
    told: list[AnyEvent] = [
        events.ExperimentStarted(name="sizes", engine="vllm", runs=[*runs, *failed]),
        *(events.RunStarted(run=run.id, requests=4) for run in runs),
        events.Sampled(
            backend="baseline",
            run="baseline/032",
            sent=4,
            first_tokens=4,
            output_tokens=4,
            finished=4,
            gpus=[
                events.Gpu(
                    index=0,
                    memory_used_gib=1,
                    memory_total_gib=2,
                    utilisation_pct=99,
                    throttled=["heat"],
                )
            ],
        ),
        *(events.RunFailed(run=run.id, reason="the server went") for run in failed),
    ]
    (path / "events.jsonl").write_bytes(b"".join(events.encode(event) + b"\n" for event in told))
    return path


def log_steps(file: Path, ranks: int) -> None:
    """Decode steps of each dataset's natural run: 1 to 5 tokens, whose load goes to the first two
    of four experts."""
    file.parent.mkdir(parents=True)
    labels = [dataset for dataset, steps in STEPS.items() for _ in range(steps)]
    tokens = np.arange(len(labels)) % 5 + 1
    loads = np.stack([tokens, tokens, 0 * tokens, 0 * tokens], axis=1)[:, None]
    took = (1e6 * tokens).astype(int).tolist()
    write_log(
        file,
        loads,
        labels=labels,
        durations_ns=took,
        ranks=ranks,
        placement=(0, 0, 1, 1)[: 4 * (ranks > 1)],
    )


def report(run_dir: Path, *only: str) -> str:
    """The text of report.md, made anew."""
    assert cli.main(["report", str(run_dir), *only]) == 0
    return (run_dir / (f"only-{only[1]}" if only else "") / "report.md").read_text()


def doses(text: str) -> dict[tuple[str, str], str]:
    """(backend, level) → runs and TPOT of the table of doses."""
    cells = [
        [c.strip() for c in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("| hot-rank |")
    ]
    return {(row[1], row[2]): f"{row[5]} {row[6]}" for row in cells if row[2] in ("0", "0.5", "1")}


class TestReport:
    def test_doses_are_of_the_named_dataset_alone(self, reports: dict[str, str]) -> None:
        for only, expected in (
            ("", ["2 15", "2 15.5", "2 17"]),
            ("032", ["1 10", "1 10", "1 10"]),
            ("256", ["1 20", "1 21", "1 24"]),
        ):
            found = doses(reports[only])
            assert found == {
                (b, f"{v:g}"): e for b in BACKENDS for v, e in zip(LEVELS, expected, strict=True)
            }

    def test_it_says_what_it_covers_before_anything_is_judged(
        self, reports: dict[str, str]
    ) -> None:
        covers = "\n\nThis report covers only dataset 256 (1 of 2) of the run directory.\n\n- Ran: "
        assert covers in reports["256"]
        assert "This report covers" not in reports[""]

    def test_it_says_when_curves_pool_datasets(self, reports: dict[str, str]) -> None:
        assert "Each curve pools 2 datasets: its values are means over them." in reports[""]
        assert "Each curve pools" not in reports["256"]

    def test_validity_findings_and_what_is_left_out_follow(self, reports: dict[str, str]) -> None:
        whole, alone = reports[""], reports["256"]
        failed = "failed runs: all2all/{}: failed: the server went"
        assert failed.format("032-r2 and 1 more") in whole
        assert failed.format("256-r2") in alone
        for text, n in ((whole, 2), (alone, 1)):
            assert f"baseline TPOT against excess CV²: n = {n}: too few to say" in text
            assert f"| baseline | {n} | 50.0 |" in text
            undone = [
                line
                for line in text.splitlines()
                if line.startswith("- all2all/") and "-r2:" in line
            ]
            assert undone == [
                f"- all2all/{d}-r2: failed: the server went" for d in ("032", "256")[-n:]
            ]
            assert "baseline, decode steps: no cost model: the work of a step never varies" in text
        assert "032" not in alone.partition("## To repeat it")[0]

    def test_what_was_wrong_with_other_datasets_is_not_told(self, run_dir: Path) -> None:
        alike = {f"gates_logs_{dataset}": 0.3 for dataset in ("001", "032", "256")}
        (run_dir / "baseline_real_imbalance.json").write_bytes(files.formatted(alike))
        whole, alone = undrawn.report(run_dir), undrawn.report(run_dir, "256")
        for problem in ("- INVALID same CV: baseline: ", "- throttled GPUs: baseline/gpu0: "):
            assert problem in whole
            assert problem not in alone

    def test_the_report_of_all_stays_as_it_was(self, run_dir: Path) -> None:
        undrawn.report(run_dir)
        before = {file: file.read_bytes() for file in run_dir.rglob("*") if file.is_file()}
        undrawn.report(run_dir, "256")
        assert {file: file.read_bytes() for file in before} == before
        made = {
            file.relative_to(run_dir / "only-256")
            for file in (run_dir / "only-256").rglob("*")
            if file.is_file()
        }
        drawn = {file.relative_to(run_dir) for file in before if file.parent.name == "graphs"}
        assert made == {Path("report.md"), Path("report.html"), *drawn}

    def test_every_figure_of_it_says_so(self, reported: tuple[Path, dict[str, str]]) -> None:
        path, reports = reported
        figures = list((path / "only-256" / "graphs").iterdir())
        assert len(figures) == 16
        for figure in figures:
            panels = Image.open(figure).info["Description"]
            assert panels.count("n = ") == panels.count(NOTE) > 0
            assert f"(graphs/{figure.name})" in reports["256"]

    def test_several_are_named_in_their_own_order(self, run_dir: Path) -> None:
        text = undrawn.report(run_dir, "256, 032")
        assert "covers only datasets 032, 256 (2 of 2) of" in text


COUNTED = {
    "scatter": "n = 2; only dataset 256",
    "heatmap": "n = 80 steps",
    "cv-over-time": "n = 80 steps",
    "step-time": "n = 80 decode steps",
    "ecdf": "n = 4, 4 requests",
    "rank-load": "n = 1 run;",
    DOSE: "n = 6 runs, 1 per level",
}


class TestPlot:
    @pytest.mark.parametrize("figure", COUNTED)
    def test_a_figure_is_of_the_named_dataset_and_says_so(
        self, run_dir: Path, figure: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        metric = ["--metric", "mean_tpot_ms"]
        assert cli.main(["plot", str(run_dir), "--figure", figure, *metric, "--only", "256"]) == 0
        answer = capsys.readouterr()
        shown = " ".join(answer.out.split())
        assert COUNTED[figure] in shown
        assert NOTE in shown
        name = {"scatter": "mean_tpot_ms-excess", DOSE: "mean_tpot_ms-forced-cv"}.get(
            figure, figure
        )
        file = run_dir / "only-256" / "graphs" / f"{name}.png"
        assert f"wrote {file}\n" in answer.err
        assert NOTE in Image.open(file).info["Description"]
        assert not (run_dir / "graphs").exists()

    def test_doses_of_all_say_how_many_datasets_they_pool(
        self, run_dir: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["plot", str(run_dir), "--figure", DOSE, "--metric", "mean_tpot_ms"]) == 0
        assert "n = 12 runs of 2 datasets, 2 per level" in capsys.readouterr().out

    def test_with_one_backend_or_run_it_narrows_further(
        self, run_dir: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        heatmap = ["plot", str(run_dir), "--figure", "heatmap", "--only", "256"]
        assert cli.main([*heatmap, "--backend", "all2all"]) == 0
        assert (run_dir / "only-256" / "graphs" / "heatmap-all2all.png").is_file()
        capsys.readouterr()
        assert cli.main([*heatmap, "--run", "all2all/032"]) == 2
        told = (
            "gatescope: no results of all2all/032; there are baseline (1 runs), all2all (1 runs)\n"
        )
        assert capsys.readouterr().err == told

    def test_results_without_a_run_directory_have_no_names_to_choose(
        self, run_dir: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = str(run_dir / "baseline" / "results_json")
        assert cli.main(["plot", "--baseline-results", folder, "--only", "256"]) == 2
        assert (
            capsys.readouterr().err
            == "gatescope: --only names datasets of a run directory: give RUN_DIR too\n"
        )


@pytest.mark.parametrize("command", [["report"], ["plot"], ["plot", "--figure", DOSE]])
class TestMistakes:
    def test_an_unknown_dataset_is_refused_as_a_batch_does(
        self, run_dir: Path, command: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main([*command, str(run_dir), "--only", "256,25"]) == 2
        assert capsys.readouterr() == ("", UNKNOWN)
        assert not list(run_dir.glob("only*"))

    def test_a_dataset_without_a_result_is_known(
        self, run_dir: Path, command: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        for file in run_dir.glob("*/results_json/256*"):
            file.unlink()
        assert cli.main([*command, str(run_dir), "--only", "256"]) == 2
        assert (
            capsys.readouterr().err == f"gatescope: {run_dir}: no run of dataset 256 is done yet\n"
        )

    def test_what_is_no_run_directory_is_named(
        self, tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main([*command, str(tmp_path), "--only", "256"]) == 2
        assert capsys.readouterr().err.startswith(f"gatescope: {tmp_path}: not a run directory: ")
