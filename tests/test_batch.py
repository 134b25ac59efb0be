"""`gatescope --batch` end to end: the real command, the real built-in servers, on ports that are free here."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
import psutil
import pytest
from watched import free_port

from core import events, state, store
from core.events import AnyEvent

GATESCOPE = [sys.executable, "-m", "core.cli"]
PNG = b"\x89PNG\r\n\x1a\n"
LIMIT_S = 100.0
UPSTREAM_KEYS = """
    date backend model_id tokenizer_id num_prompts dataset_name dataset_path request_rate duration completed
    total_input_tokens total_output_tokens request_throughput input_throughput output_throughput
    mean_ttft_ms median_ttft_ms p99_ttft_ms mean_tpot_ms median_tpot_ms p99_tpot_ms mean_itl_ms median_itl_ms p99_itl_ms
    input_lens output_lens ttfts itls generated_texts errors imbalance_score imbalance_components imbalance_raw_metrics
"""
PROMPTS = [f"Question {i} of a small data set: how many of these are there, and why {i}?" for i in range(5)]
E = TypeVar("E", bound=events.Event)


def is_closed(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


class Place:
    """A directory with an experiment: data sets, and two small backends."""

    def __init__(self, folder: Path, datasets: int = 2, **experiment: Any) -> None:
        self.folder = folder
        self.made = folder / "made"
        self.ports = (free_port(), free_port())
        (folder / "datasets").mkdir()
        for index in range(1, datasets + 1):
            self.write_dataset(index, PROMPTS)
        settings = {"engine": "builtin", "output_len": 6, "warmup_requests": 1, "shuffle": False, **experiment}
        lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
        self.config = "\n".join(
            [
                *("[experiment]", *lines, "[model]", "max_model_len = 600"),
                *("[[backends]]", 'name = "baseline"', f"port = {self.ports[0]}", "tensor_parallel = 1"),
                *("[[backends]]", 'name = "all2all"', f"port = {self.ports[1]}", "tensor_parallel = 1"),
                *("data_parallel = 2", "expert_parallel = true"),
            ]
        )
        (folder / "experiments.toml").write_text(self.config)

    def write_dataset(self, index: int, texts: list[str]) -> None:
        rows = [{"id": str(i), "text": text, "category": "c"} for i, text in enumerate(texts)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (self.folder / "datasets" / f"{index:03d}_0.5000.jsonl").write_text(lines)

    def gatescope(self, *arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*GATESCOPE, *arguments], cwd=cwd or self.folder, capture_output=True, text=True, timeout=LIMIT_S
        )

    @contextlib.contextmanager
    def running(self, *arguments: str) -> Iterator[Running]:
        """A batch in the background; nothing of it outlives the block."""
        with open(self.folder / "stderr.txt", "w") as err:
            process = subprocess.Popen(
                [*GATESCOPE, "--batch", "--json", "--out", "made", *arguments],
                cwd=self.folder,
                stdout=subprocess.PIPE,
                stderr=err,
                start_new_session=True,
            )
        guard = threading.Timer(LIMIT_S, process.kill)
        guard.start()
        batch = Running(process, psutil.Process(process.pid))
        try:
            yield batch
        finally:
            guard.cancel()
            for left in [*batch.tree, batch.me]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    left.kill()
            batch.drain()

    @property
    def journal(self) -> list[AnyEvent]:
        return store.read_events(self.made)

    def told(self, kind: type[E]) -> list[E]:
        return [event for event in self.journal if isinstance(event, kind)]

    def results(self) -> dict[str, bytes]:
        return {str(p.relative_to(self.made)): p.read_bytes() for p in self.made.rglob("results_json/*.json")}

    def phases(self) -> dict[str, str]:
        return {i: r.phase for i, r in state.fold(self.journal).runs.items()}


class Running:
    """A batch that runs; what it prints is read as events."""

    def __init__(self, process: subprocess.Popen[bytes], me: psutil.Process) -> None:
        self.process, self.me = process, me
        self.tree: list[psutil.Process] = []

    def until(self, kind: type[events.Event], count: int = 1) -> None:
        """Read on until `count` more events of a kind; then look at which processes there are."""
        assert self.process.stdout
        for line in self.process.stdout:
            if isinstance(events.decode(line), kind):
                count -= 1
            if not count:
                self.tree = self.me.children(recursive=True)
                return
        pytest.fail(f"it ended with {self.process.wait()} before {kind.__name__}")

    def end(self, number: signal.Signals) -> int:
        """SIGTERM and SIGKILL to gatescope alone, as `kill` does; the others to its group, as a terminal does."""
        if number in (signal.SIGTERM, signal.SIGKILL):
            self.me.send_signal(number)
        else:
            os.killpg(self.me.pid, number)
        return self.drain()

    def hang_up(self) -> None:
        """Read no more of what it prints."""
        assert self.process.stdout
        self.process.stdout.close()

    def drain(self) -> int:
        """Let it say what it still has to say; its exit code."""
        assert self.process.stdout
        if not self.process.stdout.closed:
            self.process.stdout.read()
            self.process.stdout.close()
        return self.process.wait()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# --- a whole run ---------------------------------------------------------------------------------------------------

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


class Whole:
    """One batch of two data sets at two backends, and what it said."""

    def __init__(self, place: Place) -> None:
        self.place = place
        done = subprocess.run(
            [sys.executable, "-c", WATCHED], cwd=place.folder, capture_output=True, timeout=LIMIT_S, env=os.environ
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
    ran = Whole(Place(tmp_path_factory.mktemp("whole")))
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
            line = next(line for line in whole.err.splitlines() if f"run {place} of 4 {run}" in line)
            assert all(word in line for word in ("TTFT", "TPOT", "tok/s", "CV", "ETA"))
        assert "engine: builtin (NumPy, CPU): its times say nothing about GPUs" in whole.err
        assert "mean TPOT, ms (up) against per-step CV of expert load (right)" in whole.err
        named = [Path(line.split("wrote ")[1]) for line in whole.err.splitlines() if line.startswith("wrote ")]
        assert len(named) >= 7
        assert all((whole.place.folder / file).is_file() for file in named)

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
        assert {f"{m}-{axis}.png" for m in metrics for axis in ("real", "predicted")} <= graphs.keys()
        assert all(data.startswith(PNG) for data in graphs.values())

    def test_results_hold_upstreams_keys_and_add_up(self, whole: Whole) -> None:
        for run, result in whole.results.items():
            assert set(UPSTREAM_KEYS.split()) <= result.keys()
            assert (result["backend"], result["dataset_name"]) == tuple(run.split("/"))
            assert result["engine"] == "builtin (NumPy, CPU)"
            assert (result["completed"], result["num_prompts"], result["errors"]) == (5, 5, [""] * 5)
            assert result["output_lens"] == [6] * 5
            assert result["total_output_tokens"] == 30
            assert result["total_input_tokens"] == sum(result["input_lens"])
            assert all(n >= len(text.encode()) for n, text in zip(result["input_lens"], PROMPTS, strict=True))
            assert [len(gaps) for gaps in result["itls"]] == [5] * 5
            assert result["mean_ttft_ms"] == pytest.approx(1e3 * np.mean(result["ttfts"]))
            assert result["mean_tpot_ms"] == pytest.approx(1e3 * np.mean([np.mean(gaps) for gaps in result["itls"]]))
            assert result["output_throughput"] == pytest.approx(30 / result["duration"])
            assert all(result["generated_texts"])

    def test_every_token_is_in_the_gate_log_once(self, whole: Whole) -> None:
        for result in whole.results.values():
            due = result["total_input_tokens"] + 30 - 5
            measured = result["measured_imbalance"]
            assert measured["tokens"] == result["gate_log"]["tokens_due"] == result["gate_log"]["tokens_seen"] == due
            assert sum(measured["expert_loads"]) == due * measured["layers"] * 2  # top-2

    def test_the_same_prompts_are_routed_alike_by_both_backends(self, whole: Whole) -> None:
        for label in ("001", "002"):
            one, other = (whole.results[f"{b}/{label}"] for b in ("baseline", "all2all"))
            assert one["generated_texts"] == other["generated_texts"]
            assert one["measured_imbalance"]["expert_loads"] == other["measured_imbalance"]["expert_loads"]

    def test_upstreams_mappings_are_what_the_gate_logs_say(self, whole: Whole) -> None:
        for backend in ("baseline", "all2all"):
            answer = whole.place.gatescope("imbalance", whole.place.made / backend / "gate_logs", "--json")
            assert answer.returncode == 0
            measured = json.loads(answer.stdout)
            for suffix, key in (("", "per_step_cv"), ("_aggregated", "aggregated_cv")):
                mapping = json.loads((whole.place.made / f"{backend}_real_imbalance{suffix}.json").read_bytes())
                expected = {f"gates_logs_{i:02d}": measured[f"gates_logs_{i:03d}"][key] for i in (1, 2)}
                assert mapping == pytest.approx(expected, abs=1e-12)

    def test_the_summary_has_a_row_for_every_run(self, whole: Whole) -> None:
        with open(whole.place.made / "summary.csv", newline="") as file:
            rows = {f"{row['backend']}/{row['dataset']}": row for row in csv.DictReader(file)}
        assert rows.keys() == whole.results.keys()
        for run, result in whole.results.items():
            assert float(rows[run]["mean_ttft_ms"]) == pytest.approx(result["mean_ttft_ms"])
            assert float(rows[run]["per_step_cv"]) == pytest.approx(result["measured_imbalance"]["per_step_cv"])

    def test_the_stamps_of_the_requests_make_up_the_results(self, whole: Whole) -> None:
        for run, result in whole.results.items():
            backend, label = run.split("/")
            kept = np.load(whole.place.made / backend / "requests" / f"{label}.npz")
            assert kept["ok"].all()
            assert kept["output_tokens"].tolist() == result["output_lens"]
            ttfts = (kept["t_first_ns"] - kept["t_sent_ns"]) / 1e9
            assert ttfts == pytest.approx(result["ttfts"])

    def test_run_json_says_what_was_asked_and_what_ran(self, whole: Whole) -> None:
        about = json.loads((whole.place.made / "run.json").read_bytes())
        assert store.read_about(whole.place.made).config.dataset_paths == tuple(
            sorted((whole.place.folder / "datasets").iterdir())
        )
        assert about["versions"]["gatescope"] != "unknown"
        assert about["servers"]["all2all"]["ran"]["data_parallel_size"] == "2"
        assert [s["mismatches"] for s in about["servers"].values()] == [[], []]

    def test_plots_are_loaded_when_all_is_measured_and_screens_never(self, whole: Whole) -> None:
        loaded = dict(line.split() for line in (whole.place.folder / "imports.txt").read_text().splitlines())
        assert {"matplotlib", "plotext"} <= loaded.keys() <= {"matplotlib", "plotext", "scipy"}
        assert set(loaded.values()) == {"ExperimentFinished"}

    def test_is_private_and_leaves_no_port_open(self, whole: Whole) -> None:
        assert whole.place.made.stat().st_mode & 0o077 == 0
        assert all(is_closed(port) for port in whole.place.ports)

    def test_is_plotted_again(self, whole: Whole, tmp_path: Path) -> None:
        answer = whole.place.gatescope("plot", whole.place.made, "--metric", "median_ttft_ms", "-o", tmp_path / "a.png")
        assert answer.returncode == 0, answer.stderr
        assert "against per-step CV of expert load" in answer.stdout
        assert (tmp_path / "a.png").read_bytes().startswith(PNG)

    def test_has_nothing_left_to_resume(self, whole: Whole) -> None:
        before = whole.place.results()
        answer = whole.place.gatescope("--batch", "--resume", "made")
        assert answer.returncode == 0
        assert "resuming: 0 of 4 runs are missing" in answer.stderr
        assert whole.place.results() == before
        assert len(whole.place.told(events.BackendStarting)) == 2


# --- what goes wrong -----------------------------------------------------------------------------------------------


def test_a_failing_data_set_is_reported_and_the_rest_is_done(place: Place) -> None:
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
    assert answer.stderr.startswith(f"gatescope: [[backends]] all2all, port: {place.ports[1]} is not free")
    assert f"held by process {os.getpid()} " in answer.stderr
    assert len(answer.stderr.splitlines()) == 1
    assert not place.made.exists()


def test_a_reader_of_the_events_may_go_away(place: Place) -> None:
    with place.running("--only", "001", "--backend", "baseline") as batch:
        batch.until(events.BackendStarting)
        batch.hang_up()
        assert batch.process.wait() == 0
    assert place.phases() == {"baseline/001": "done"}


def test_closed_standard_streams_are_not_mistaken_for_files(place: Place) -> None:
    """Else the journal, or the lock, is given stderr's number, and the talk goes into it."""
    command = [*GATESCOPE, "--batch", "--json", "--only", "001", "--backend", "baseline", "--out", "made"]
    done = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], cwd=place.folder, timeout=LIMIT_S)
    assert done.returncode == 0
    assert (place.made / ".lock").read_text().strip().isdigit()
    assert place.phases() == {"baseline/001": "done"}


# --- signals and resume --------------------------------------------------------------------------------------------


def gone(batch: Running, timeout_s: float) -> bool:
    assert len(batch.tree) >= 2  # a supervisor and a server at least
    return not psutil.wait_procs(batch.tree, timeout=timeout_s)[1]


def test_an_interrupted_batch_keeps_what_was_done_and_goes_on_with_the_rest(tmp_path: Path) -> None:
    place = Place(tmp_path, pause_s=60.0)
    with place.running("--backend", "baseline") as batch:
        batch.until(events.RunFinished)
        second = place.gatescope("--batch", "--resume", "made")
        assert batch.end(signal.SIGINT) == 130
        assert gone(batch, 0)
    assert second.returncode == 2
    assert f"made: in use by another gatescope, process {batch.me.pid}; wait for it or stop it" in second.stderr
    assert is_closed(place.ports[0])
    assert place.journal[-1] == events.ExperimentInterrupted(at=place.journal[-1].at, by="SIGINT")
    assert place.phases() == {"baseline/001": "done", "baseline/002": "queued"}
    first = place.results()["baseline/results_json/001.json"]

    again = place.gatescope("--batch", "--out", "made", "--backend", "baseline")
    assert again.returncode == 2
    assert "made: --out must be new or empty; to go on with an interrupted run use: --resume made" in again.stderr

    (tmp_path / "experiments.toml").unlink()  # the run directory knows what it was started with
    answer = place.gatescope("--resume", place.made, "--batch", cwd=tmp_path.parent)
    assert answer.returncode == 0, answer.stderr
    assert "resuming: 1 of 2 runs are missing" in answer.stderr
    assert set(place.phases().values()) == {"done"}
    assert [e.run for e in place.told(events.RunStarted)] == ["baseline/001", "baseline/002"]
    assert place.results()["baseline/results_json/001.json"] == first
    mapping = json.loads((place.made / "baseline_real_imbalance.json").read_bytes())
    assert list(mapping) == ["gates_logs_01", "gates_logs_02"]


@pytest.mark.parametrize(
    ("number", "moment", "code"),
    [
        (signal.SIGTERM, events.BackendStarting, 143),
        (signal.SIGINT, events.RequestFinished, 130),
        (signal.SIGHUP, events.RunStarted, 129),
    ],
    ids=["SIGTERM while a server starts", "SIGINT while requests end", "SIGHUP while a run runs"],
)
def test_a_signal_leaves_no_process(
    tmp_path: Path, number: signal.Signals, moment: type[events.Event], code: int
) -> None:
    place = Place(tmp_path, output_len=500, max_concurrency=1)
    with place.running("--backend", "all2all") as batch:
        batch.until(moment)
        assert batch.end(number) == code
        assert not [p for p in batch.tree if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert is_closed(place.ports[1])
    assert set(place.phases().values()) == {"queued"}
    said = (tmp_path / "stderr.txt").read_text()
    assert f"stopped by {number.name}; what was done is kept" in said
    assert "Traceback" not in said


def test_when_gatescope_is_killed_its_servers_go_and_its_run_can_be_resumed(tmp_path: Path) -> None:
    place = Place(tmp_path, output_len=200)
    with place.running("--backend", "all2all") as batch:
        batch.until(events.RunFinished)
        batch.until(events.RunStarted)
        assert batch.end(signal.SIGKILL) == -signal.SIGKILL
        assert gone(batch, 15)
    assert is_closed(place.ports[1])
    with open(place.made / "events.jsonl", "ab") as journal:
        journal.write(b'{"event":"RunFin')  # what a full disk or a power cut leaves
    answer = place.gatescope("--batch", "--resume", "made")
    assert answer.returncode == 0, answer.stderr
    assert place.phases() == {"all2all/001": "done", "all2all/002": "done"}
    assert [e.run for e in place.told(events.RunStarted)] == ["all2all/001", "all2all/002", "all2all/002"]


# --- serve and bench -----------------------------------------------------------------------------------------------


@pytest.fixture
def served(place: Place) -> Iterator[str]:
    """The URL of a `gatescope serve baseline`, which is ended as a shell would and leaves nothing."""
    server = subprocess.Popen([*GATESCOPE, "serve", "baseline"], cwd=place.folder, stdout=subprocess.PIPE)
    guard = threading.Timer(LIMIT_S, server.kill)
    guard.start()
    assert server.stdout
    url = next(line.split()[1].decode() for line in server.stdout if line.startswith(b"ready: "))
    yield url
    server.terminate()
    assert server.wait() == 143
    assert is_closed(place.ports[0])
    guard.cancel()
    server.stdout.close()


class TestBench:
    DATASET = "datasets/002_0.5000.jsonl"

    def test_sends_each_prompt_once_and_writes_one_result(self, place: Place, served: str) -> None:
        assert served == f"http://127.0.0.1:{place.ports[0]}"
        asked = ["--num-prompts", "3", "--output-len", "5", "--result-dir", "results", "--json"]
        answer = place.gatescope("bench", self.DATASET, "--base-url", served, *asked)
        assert answer.returncode == 0, answer.stderr
        result = json.loads(answer.stdout)
        assert [p.name for p in (place.folder / "results").iterdir()] == ["002.json"]
        assert json.loads((place.folder / "results" / "002.json").read_bytes()) == result
        assert (result["completed"], result["output_lens"], result["dataset_name"]) == (3, [5, 5, 5], "002")
        assert set(UPSTREAM_KEYS.split()) - {"tokenizer_id"} <= result.keys()
        counted = httpx.get(f"{served}/metrics", trust_env=False).text
        (generated,) = [line for line in counted.splitlines() if line.startswith("vllm:generation_tokens_total{")]
        assert float(generated.split()[-1]) == 3 * 5

        unknown = place.gatescope("bench", self.DATASET, "--port", str(place.ports[0]), "--model", "nobody")
        assert (unknown.returncode, unknown.stdout) == (1, "")
        assert "404" in unknown.stderr

    def test_without_a_server_is_one_line(self, place: Place) -> None:
        answer = place.gatescope("bench", self.DATASET, "--port", str(place.ports[0]))
        assert (answer.returncode, answer.stdout) == (2, "")
        url = f"http://127.0.0.1:{place.ports[0]}"
        assert answer.stderr.startswith(f"gatescope: {url}/v1/models: no model named there (ConnectError: ")
        assert len(answer.stderr.splitlines()) == 1


def test_serve_refuses_a_taken_port_and_an_unknown_backend(place: Place) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", place.ports[0]))
        taken.listen()
        answer = place.gatescope("serve", "baseline")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert f"[[backends]] baseline, port: {place.ports[0]} is not free" in answer.stderr
    answer = place.gatescope("serve", "baseline", "--batch-tokens", "4")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith("gatescope: serve baseline, max_num_batched_tokens: expected at least max_num_seqs")
    answer = place.gatescope("serve", "base")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith("gatescope: experiments.toml: no backend 'base'; known: baseline, all2all")
