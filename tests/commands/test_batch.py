"""`gatescope --batch` end to end: the real command, the real built-in servers, on ports that are
free here."""

from __future__ import annotations

import csv
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from support.place import GATESCOPE, LIMIT_S, PROMPTS, UPSTREAM_KEYS, Place, is_closed
from support.terminal import said_to_a_terminal

from core.backends import builtin
from core.experiment import events
from core.experiment.tables import Backend, Model
from core.routing import folder as gate_folder
from core.rundir import about as run_json
from core.rundir.journal import read_events

PNG = b"\x89PNG\r\n\x1a\n"
ANSI = re.compile(r"\x1b\[[0-9;]*[mK]")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# --- a whole run ---

HEAVY = ("matplotlib", "scipy", "plotext", "textual", "tui")
WATCHED = f"""
import sys
seen = set()
def watch(event, arguments):
    name = arguments[0].split(".")[0] if event == "import" else ""
    if name in {HEAVY} and name not in seen:
        seen.add(name)
        with open("imports.txt", "a") as file, open("made/events.jsonl") as journal:
            print(name, list(journal)[-1].split('"')[3], file=file)
sys.addaudithook(watch)
from core import cli
sys.exit(cli.main(["--batch", "--json", "--out", "made"]))
"""


def test_on_a_terminal_a_bar_says_how_far_it_is_and_words_are_wrapped(place: Place) -> None:
    batch = [*GATESCOPE, "--batch", "--only", "001", "--backend", "baseline", "--out", "made"]
    said = said_to_a_terminal(batch, place.folder, {"TERM": "xterm-256color"}, 60).decode()
    bars = re.findall(r"\r\x1b\[K(▶[^\r]*)", said)
    assert bars[0].startswith("▶ baseline/001 ╌╌╌")
    assert "100%  30 of 30 tokens  run 1 of 1" in bars[-1]
    rows = [ANSI.sub("", row) for row in re.split(r"[\r\n]+", said)]
    assert max(map(len, rows)) <= 60
    assert "\x1b[32m● baseline: ready after" in said


class Whole:
    """One batch of two datasets at two backends, and what it said."""

    def __init__(self, place: Place) -> None:
        self.place = place
        done = subprocess.run(
            [sys.executable, "-c", WATCHED],
            cwd=place.folder,
            capture_output=True,
            timeout=LIMIT_S,
            env=os.environ,
        )
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr.decode()
        self.result_files = {
            f"{b}/{d}": place.made / b / "results_json" / f"{d}.json"
            for b in ("baseline", "all2all")
            for d in ("001", "002")
        }

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        return {run: json.loads(file.read_bytes()) for run, file in self.result_files.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    ran = Whole(Place(tmp_path_factory.mktemp("whole"), graphs=True))
    assert ran.code == 0, ran.err
    return ran


class TestWholeRun:
    def test_stdout_is_the_journal_and_nothing_else(self, whole: Whole) -> None:
        assert whole.out == (whole.place.made / "events.jsonl").read_bytes()
        told = whole.place.journal
        assert isinstance(told[0], events.ExperimentStarted)
        assert told[-1] == events.ExperimentFinished(at=told[-1].at, done=4, failed=0)
        assert whole.place.phases() == dict.fromkeys(whole.result_files, "done")

    def test_stderr_is_plain_lines_for_a_reader(self, whole: Whole) -> None:
        assert not set("\r\x1b\b") & set(whole.err)
        for place, run in enumerate(whole.result_files, 1):
            line = next(
                line for line in whole.err.splitlines() if f"run {place} of 4 {run}" in line
            )
            assert all(word in line for word in ("TTFT", "TPOT", "tok/s", "CV", "ETA"))
        assert "engine: builtin (NumPy, CPU): its times say nothing about GPUs" in whole.err
        assert re.search(
            r"mean TPOT, ms \(up\) against (excess CV²|per-step CV) of expert load \(right\)",
            whole.err,
        )

    def test_findings_come_last_and_the_files_take_one_line(self, whole: Whole) -> None:
        lines = whole.err.splitlines()
        (wrote,) = [line for line in lines if line.startswith("wrote ")]
        named = re.findall(r"[^ ,]+(?:/results_json|\.csv|\.json)", wrote)
        assert wrote.startswith("wrote in made: baseline/results_json (2 runs), all2all/")
        assert len(named) == 5
        assert all((whole.place.made / file).exists() for file in named)
        assert f"graphs ({len(list((whole.place.made / 'graphs').iterdir()))} PNGs)" in wrote
        last = "\n".join(lines[lines.index(wrote) + 1 :])
        assert last.startswith("\nvalidity: ")
        assert "all2all against excess CV²" in last
        assert last.endswith("\nto read it all: gatescope report made")

    def test_every_file_of_the_run_directory_is_there(self, whole: Whole) -> None:
        made = whole.place.made
        for backend in ("baseline", "all2all"):
            assert (made / backend / "server.log").stat().st_size
            assert (made / backend / "gate_logs" / "dp0_pp0.gatelog").stat().st_size
            for label in ("001", "002"):
                assert (made / backend / "results_json" / f"{label}.json").is_file()
                assert (made / backend / "requests" / f"{label}.npz").is_file()
        assert not (made / "control.sock").exists()
        assert not list(made.rglob("*.tmp*"))
        graphs = {g.name: g.read_bytes() for g in (made / "graphs").iterdir()}
        metrics = ("mean_ttft_ms", "mean_tpot_ms", "output_throughput")
        assert {
            f"{m}-{axis}.png" for m in metrics for axis in ("per-step", "predicted")
        } <= graphs.keys()
        assert all(data.startswith(PNG) for data in graphs.values())

    def test_results_hold_upstreams_keys_and_add_up(self, whole: Whole) -> None:
        for run, result in whole.results.items():
            assert set(UPSTREAM_KEYS.split()) <= result.keys()
            assert (result["backend"], result["dataset_name"]) == tuple(run.split("/"))
            assert result["engine"] == "builtin (NumPy, CPU)"
            assert (result["completed"], result["num_prompts"], result["errors"]) == (
                5,
                5,
                [""] * 5,
            )
            assert result["output_lens"] == [6] * 5
            assert result["total_output_tokens"] == 30
            assert result["total_input_tokens"] == sum(result["input_lens"])
            assert all(
                n >= len(text.encode())
                for n, text in zip(result["input_lens"], PROMPTS, strict=True)
            )
            assert [len(gaps) for gaps in result["itls"]] == [5] * 5
            assert result["mean_ttft_ms"] == pytest.approx(1e3 * np.mean(result["ttfts"]))
            assert result["mean_tpot_ms"] == pytest.approx(
                1e3 * np.mean([np.mean(gaps) for gaps in result["itls"]])
            )
            assert result["output_throughput"] == pytest.approx(30 / result["duration"])
            assert all(result["generated_texts"])

    def test_every_token_is_in_the_gate_log_once(self, whole: Whole) -> None:
        for result in whole.results.values():
            due = result["total_input_tokens"] + 30 - 5
            measured = result["measured_imbalance"]
            assert (
                measured["tokens"]
                == result["gate_log"]["tokens_due"]
                == result["gate_log"]["tokens_seen"]
                == due
            )
            assert sum(measured["expert_loads"]) == due * measured["layers"] * 2  # top-2

    def test_the_same_prompts_are_routed_alike_by_both_backends(self, whole: Whole) -> None:
        for label in ("001", "002"):
            one, other = (whole.results[f"{b}/{label}"] for b in ("baseline", "all2all"))
            assert one["generated_texts"] == other["generated_texts"]
            assert (
                one["measured_imbalance"]["expert_loads"]
                == other["measured_imbalance"]["expert_loads"]
            )

    def test_every_run_was_looked_at_once_however_short(self, whole: Whole) -> None:
        assert {
            sample.run for sample in whole.place.told(events.Sampled)
        } == whole.result_files.keys()

    def test_upstreams_mappings_are_what_the_gate_logs_say(self, whole: Whole) -> None:
        for backend in ("baseline", "all2all"):
            answer = whole.place.gatescope(
                "imbalance", whole.place.made / backend / "gate_logs", "--json"
            )
            assert answer.returncode == 0
            measured = json.loads(answer.stdout)
            for suffix, key in (("", "per_step_cv"), ("_aggregated", "aggregated_cv")):
                mapping = json.loads(
                    (whole.place.made / f"{backend}_real_imbalance{suffix}.json").read_bytes()
                )
                expected = {
                    f"gates_logs_{i:02d}": measured[f"gates_logs_{i:03d}"][key] for i in (1, 2)
                }
                assert mapping == pytest.approx(expected, abs=1e-12)

    def test_the_summary_has_a_row_for_every_run(self, whole: Whole) -> None:
        with open(whole.place.made / "summary.csv", newline="") as file:
            rows = {f"{row['backend']}/{row['dataset']}": row for row in csv.DictReader(file)}
        assert rows.keys() == whole.results.keys()
        for run, result in whole.results.items():
            assert float(rows[run]["mean_ttft_ms"]) == pytest.approx(result["mean_ttft_ms"])
            assert float(rows[run]["per_step_cv"]) == pytest.approx(
                result["measured_imbalance"]["per_step_cv"]
            )

    def test_the_stamps_of_the_requests_make_up_the_results(self, whole: Whole) -> None:
        for run, result in whole.results.items():
            backend, label = run.split("/")
            kept = np.load(whole.place.made / backend / "requests" / f"{label}.npz")
            assert kept["ok"].all()
            assert kept["output_tokens"].tolist() == result["output_lens"]
            ttfts = (kept["t_first_ns"] - kept["t_sent_ns"]) / 1e9
            assert ttfts == pytest.approx(result["ttfts"])
            log = gate_folder.read(whole.place.made / backend / "gate_logs")
            ends = (log.columns["start_ns"] + log.columns["duration_ns"])[log.segments[label] > 0]
            assert result["delivery_lag_ms"] == pytest.approx(
                (kept["stamps_ns"].max() - ends[-1]) / 1e6
            )
            assert 0 < result["delivery_lag_ms"] < 1e3 * result["duration"]

    def test_run_json_says_what_was_requested_and_what_ran(self, whole: Whole) -> None:
        about = json.loads((whole.place.made / "run.json").read_bytes())
        assert run_json.read(whole.place.made).config.dataset_paths == tuple(
            sorted((whole.place.folder / "datasets").iterdir())
        )
        assert about["versions"]["gatescope"] != "unknown"
        assert about["servers"]["all2all"]["ran"]["data_parallel_size"] == "2"
        assert [s["mismatches"] for s in about["servers"].values()] == [[], []]

    def test_plots_are_loaded_when_all_is_measured_and_screens_never(self, whole: Whole) -> None:
        loaded = dict(
            line.split() for line in (whole.place.folder / "imports.txt").read_text().splitlines()
        )
        assert {"matplotlib", "plotext"} <= loaded.keys() <= {"matplotlib", "plotext", "scipy"}
        assert set(loaded.values()) == {"ExperimentFinished"}

    def test_is_private_and_leaves_no_port_open(self, whole: Whole) -> None:
        assert whole.place.made.stat().st_mode & 0o077 == 0
        assert all(is_closed(port) for port in whole.place.ports)

    def test_is_plotted_again(self, whole: Whole, tmp_path: Path) -> None:
        answer = whole.place.gatescope(
            "plot", whole.place.made, "--metric", "median_ttft_ms", "-o", tmp_path / "a.png"
        )
        assert answer.returncode == 0, answer.stderr
        assert re.search("against (excess CV²|per-step CV) of expert load", answer.stdout)
        assert (tmp_path / "a.png").read_bytes().startswith(PNG)

    def test_has_nothing_left_to_resume(self, whole: Whole) -> None:
        before = whole.place.results()
        answer = whole.place.gatescope("--batch", "--resume", "made")
        assert answer.returncode == 0
        assert "resuming: 0 of 4 runs are missing" in answer.stderr
        assert whole.place.results() == before
        assert len(whole.place.told(events.BackendStarting)) == 2


# --- what goes wrong ---


@pytest.mark.parametrize(("temperature", "used"), [("auto", 1.0), (0, 0.0)])
def test_the_temperature_is_the_configs_or_the_models_own(
    tmp_path: Path, temperature: float | str, used: float
) -> None:
    """Greedy answers to one prompt are all the same; drawn ones differ, and repeat in a repeat."""
    place = Place(tmp_path, temperature=temperature, repeats=2, output_len=20)
    place.write_dataset(1, PROMPTS[:1] * 5)
    (tmp_path / "experiments.toml").write_text(
        place.config.replace("[model]", '[model]\nweights = "trained"')
    )
    done = place.gatescope("--batch", "--out", "made", "--only", "001", "--backend", "baseline")
    assert done.returncode == 0, done.stderr
    once, again = (json.loads(result) for _, result in sorted(place.results().items()))
    assert once["temperature"] == again["temperature"] == used
    assert once["generated_texts"] == again["generated_texts"]
    assert len(set(once["generated_texts"])) == (1 if used == 0 else 5)


@pytest.mark.parametrize(("weights", "own"), [("trained", 1.0), ("random", 0.0)])
def test_a_model_s_own_temperature(weights: Literal["trained", "random"], own: float) -> None:
    backend = Backend(name="b", port=0, tensor_parallel=1)
    launch = builtin.launch(backend, Model(weights=weights), None, 0)
    assert launch.temperature == own


def test_a_failing_dataset_is_reported_and_the_rest_is_done(place: Place) -> None:
    """The first prompt of all is too long, so the warm-up meets it too."""
    place.write_dataset(1, ["x" * 700, *PROMPTS])
    answer = place.gatescope("--batch", "--backend", "baseline", "--out", "made")
    assert answer.returncode == 1
    assert place.phases() == {"baseline/001": "failed", "baseline/002": "done"}
    (failure,) = place.told(events.RunFailed)
    assert failure.reason.startswith("1 of 6 requests failed, the first with: HTTP 400: ")
    assert "! run 1 of 2 baseline/001   failed: 1 of 6 requests failed" in answer.stderr
    assert "1 runs done, 1 failed" in answer.stderr
    assert list(place.results()) == ["baseline/results_json/002.json"]


def test_a_port_in_use_is_named_with_its_owner_and_nothing_is_started(place: Place) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", place.ports[1]))
        taken.listen()
        answer = place.gatescope("--batch", "--out", "made")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith(
        f"gatescope: [[backends]] all2all, port: {place.ports[1]} is not free"
    )
    assert f"held by process {os.getpid()} " in answer.stderr
    assert len(answer.stderr.splitlines()) == 1
    assert not place.made.exists()


def test_a_reader_of_the_events_may_go_away(place: Place) -> None:
    with place.running("--only", "001", "--backend", "baseline") as batch:
        batch.until(events.BackendStarting)
        batch.hang_up()
        assert batch.process.wait() == 0
    assert place.phases() == {"baseline/001": "done"}


def test_closed_standard_streams_are_not_mistaken_for_files(tmp_path: Path) -> None:
    """Else the journal, or the lock, is given stderr's number, and the talk goes into it."""
    place = Place(tmp_path, repeats=2)
    command = [
        *GATESCOPE,
        "--batch",
        "--json",
        "--only",
        "001",
        "--backend",
        "baseline",
        "--out",
        "made",
    ]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], cwd=place.folder, timeout=LIMIT_S
    )
    assert done.returncode == 0
    assert (place.made / ".lock").read_text().strip().isdigit()
    assert place.phases() == {"baseline/001": "done", "baseline/001-r2": "done"}
    found = place.results()
    first, second = (
        json.loads(found[f"baseline/results_json/{label}.json"]) for label in ("001", "001-r2")
    )
    assert (first["dataset_name"], second["dataset_name"]) == ("001", "001-r2")
    assert first["generated_texts"] == second["generated_texts"]
    mapping = json.loads((place.made / "baseline_real_imbalance.json").read_bytes())
    assert list(mapping) == ["gates_logs_01", "gates_logs_01-r2"]


def test_port_0_takes_a_free_one_and_two_batches_share_the_machine(tmp_path: Path) -> None:
    place = Place(tmp_path)
    config = re.sub(r"port = \d+", "port = 0", place.config)
    (tmp_path / "experiments.toml").write_text(config)
    with place.running("--backend", "baseline", "--only", "001") as batch:
        batch.until(events.BackendReady)
        other = place.gatescope("--batch", "--out", "b", "--backend", "baseline", "--only", "001")
        assert batch.drain() == 0
    assert other.returncode == 0, other.stderr
    ports = [
        event.port
        for run in (place.made, tmp_path / "b")
        for event in read_events(run)
        if isinstance(event, events.BackendStarting)
    ]
    assert len(set(ports)) == 2
    assert all(port > 1023 for port in ports)
