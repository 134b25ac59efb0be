"""A whole batch on real vLLM, with two backends and three datasets; then `gatescope serve`."""

from __future__ import annotations

import json
import os
import re
import signal
import string
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import fake_nvml
from support.cpu_server import CPU, CPU_ALL2ALL, START_S
from support.watched import free_port

from core.backends import moekernel
from core.experiment.tables import Model
from core.routing import folder as gate_folder
from core.routing.imbalance import WARMUP

CONFIG = """
[experiment]
engine = "vllm"
datasets = "*.jsonl"
num_prompts = 24
output_len = 12
warmup_requests = 2
max_concurrency = 1
[dose]
levels = [1.0]
patterns = ["spread"]
[model]
id = "{model}"
max_model_len = 2048
[[backends]]
name = "baseline"
port = {ports[0]}
tensor_parallel = 1
{common}
[[backends]]
name = "all2all"
port = {ports[1]}
tensor_parallel = 1
data_parallel = 2
{common}
"""
COMMON = """
python = "{python}"
moe_backend = ""
max_num_batched_tokens = 2048
enforce_eager = true
startup_timeout_s = {start_s}
extra_args = ["--dtype", "bfloat16"]
[backends.env]
VLLM_CPU_KVCACHE_SPACE = "1"
VLLM_CPU_OMP_THREADS_BIND = "0|1"
PYTHONPATH = "{all2all}"
"""


PROMPTS = [string.printable[n * 15 : n * 15 + 15] * 13 for n in range(6)]


def gatescope(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "core.cli", *arguments]


@pytest.fixture(scope="module")
def experiment(
    vllm_python: str, tiny_mixtral: Model, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with experiments.toml and three datasets: the same letter over and over, all
    printable characters, and 24 long prompts. One request runs at a time, so that the same prompt
    gives the same text."""
    folder = tmp_path_factory.mktemp("experiment")
    common = COMMON.format(python=vllm_python, start_s=START_S, all2all=CPU_ALL2ALL)
    config = CONFIG.format(model=tiny_mixtral.id, ports=(free_port(), free_port()), common=common)
    (folder / "experiments.toml").write_text(config)
    texts = ["a" * 200] * 6, PROMPTS, [string.printable[n : n + 30] * 30 for n in range(24)]
    for number, prompts in enumerate(texts, 1):
        lines = "".join(
            json.dumps({"id": str(n), "text": text}) + "\n" for n, text in enumerate(prompts)
        )
        (folder / f"00{number}_0.5.jsonl").write_text(lines)
    return folder


@pytest.fixture(scope="module")
def run(experiment: Path) -> Path:
    """A run on a machine that seems to have a GPU, so that the warm-up includes the step sizes that
    matter there."""
    with pytest.MonkeyPatch.context() as patch:
        fake_nvml.install(experiment, patch, fake_nvml.H200)
        env = dict(os.environ)
    done = subprocess.run(
        gatescope(
            "--batch",
            "--config",
            str(experiment / "experiments.toml"),
            "--out",
            str(experiment / "run"),
        ),
        capture_output=True,
        text=True,
        timeout=2 * START_S,
        env=env,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return experiment / "run"


def result(run: Path, backend: str, label: str) -> dict[str, Any]:
    return dict(json.loads((run / backend / "results_json" / f"{label}.json").read_text()))


@pytest.mark.parametrize("backend", ["baseline", "all2all"])
@pytest.mark.parametrize("label", ["001", "002"])
def test_every_token_of_every_run_is_in_its_steps(run: Path, backend: str, label: str) -> None:
    got = result(run, backend, label)
    assert got["completed"] == 6
    assert got["engine"].startswith("vllm 0.")
    assert got["temperature"] == 0.0
    log = got["gate_log"]
    assert (
        log["tokens_seen"]
        == log["tokens_due"]
        == got["total_input_tokens"] + got["total_output_tokens"] - 6
    )
    assert 0 < got["delivery_lag_ms"] < 1e3 * got["duration"]


@pytest.mark.parametrize(("backend", "idle"), [("baseline", 0), ("all2all", 1)])
def test_the_warm_up_meets_every_step_size_that_has_a_kernel_compiled(
    run: Path, backend: str, idle: int
) -> None:
    """The sizes include the dummy token of an idle data-parallel rank, which no log has."""
    warmup = gate_folder.read(run / backend / "gate_logs").segments[WARMUP]
    sizes = [size - idle for size in moekernel.step_sizes(2047 + idle, 8, 2) if size > idle]
    assert warmup[warmup > 0][-len(sizes) :].tolist() == sizes


@pytest.mark.parametrize("backend", ["baseline", "all2all"])
def test_one_letter_over_and_over_skews_the_router_more_than_all_of_them(
    run: Path, backend: str
) -> None:
    same, different = (
        result(run, backend, label)["measured_imbalance"] for label in ("001", "002")
    )
    assert same["layer_cv"] > different["layer_cv"]


def test_both_layouts_route_alike(run: Path) -> None:
    """The same prompts and weights: prefill routes the same, so all tokens agree but the sampled
    ones."""
    one, two = (
        result(run, backend, "002")["measured_imbalance"] for backend in ("baseline", "all2all")
    )
    assert one["layer_cv"] == pytest.approx(two["layer_cv"], rel=0.1)


def test_what_ran_is_in_run_json(run: Path) -> None:
    about = json.loads((run / "run.json").read_text())
    ran = {name: server["ran"] for name, server in _servers(about).items()}
    assert ran["baseline"]["moe_backend"] == ran["all2all"]["moe_backend"] == "CPU"
    assert (ran["baseline"]["data_parallel_size"], ran["all2all"]["data_parallel_size"]) == (
        "1",
        "2",
    )
    assert ran["all2all"]["recorder"].startswith("records 4 layers x 8 experts")
    assert [server["mismatches"] for server in _servers(about).values()] == [[], []]


@pytest.mark.parametrize("backend", ["baseline", "all2all"])
def test_forced_routing_is_recorded_as_it_was_requested_for(run: Path, backend: str) -> None:
    got = result(run, backend, "003~spread~1")
    assert got["forced_routing"] == {"pattern": "spread", "level": 1.0}
    measured = got["measured_imbalance"]
    assert measured["tokens"] == got["gate_log"]["tokens_due"] > 20_000
    assert measured["aggregated_cv"] == pytest.approx(1.0, rel=0.02)
    loads = measured["expert_loads"]
    hottest = sorted(range(8), key=lambda e: -loads[e])[:2]
    assert set(hottest) == {0, 4}  # one expert on each of two ranks
    assert result(run, backend, "003")["forced_routing"] is None
    server = _servers(json.loads((run / "run.json").read_text()))[backend]
    assert "on for spread~1" in server["ran"]["forced_routing"]


def _servers(about: dict[str, Any]) -> dict[str, Any]:
    """Each backend's last start; its entry is one start, or a list of them."""
    found = about["servers"]
    return {name: note[-1] if isinstance(note, list) else note for name, note in found.items()}


def test_serve_answers_as_the_recorded_server_did_and_leaves_nothing_behind(
    experiment: Path, run: Path
) -> None:
    """This needs `run`, so that the two do not compete for the cores. `serve` loads no plugin, and
    the text is the same."""
    config = (experiment / "experiments.toml").read_text()
    port = int(re.findall(r"port = (\d+)", config)[0])
    command = gatescope(
        "serve", "baseline", "--config", str(experiment / "experiments.toml"), "--max-seqs", "4"
    )
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, env={**os.environ, **CPU, "VLLM_API_KEY": "key"}
    )
    try:
        models = _when_ready(port, process)
        assert models.status_code == 200
        texts = [_completed(port, models.json()["data"][0]["id"], prompt) for prompt in PROMPTS]
        assert texts == result(run, "baseline", "002")["generated_texts"]
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False)


def _completed(port: int, model: str, prompt: str) -> str:
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": 12,
        "ignore_eos": True,
        "temperature": 0,
    }
    headers = {"Authorization": "Bearer key"}
    url = f"http://127.0.0.1:{port}/v1/completions"
    answer = httpx.post(
        url, json=body, headers=headers, timeout=120.0, trust_env=False
    ).raise_for_status()
    return str(answer.json()["choices"][0]["text"])


def _when_ready(port: int, process: subprocess.Popen[bytes]) -> httpx.Response:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            headers = {"Authorization": "Bearer key"}
            return httpx.get(f"http://127.0.0.1:{port}/v1/models", headers=headers, trust_env=False)
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError(f"serve was not ready, exit code {process.poll()}")
