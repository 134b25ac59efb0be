"""`gatescope record` around a real server: the same counts as a server that gatescope launches, and
as vLLM itself reports."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from support.cpu_server import CPU, START_S, cpu_backend, started
from support.tiny_mixtral import EXPERTS, LAYERS

from core.backends import vllm
from core.experiment.tables import Model
from core.recorder.gatescope_recorder.parts import part_files
from core.routing import folder as gate_folder
from core.routing import measured_folder

ROOT = Path(__file__).parents[2]
REQUESTS = 12
ARGUMENTS = ["--dtype", "bfloat16", "--enable-return-routed-experts"]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a server left: its logs, its own output, its exit code, and what vLLM reported."""

    gate_logs: Path
    output: str
    code: int
    want: Counts


def ask_all(url: str, model: str) -> Counts:
    """REQUESTS requests, one after the other, so that every server computes the same batches; the
    loads [layers, experts] that vLLM reports of them."""
    want = np.zeros((LAYERS, EXPERTS), np.int64)
    with httpx.Client(
        base_url=url, timeout=300.0, trust_env=False, headers={"Authorization": "Bearer key"}
    ) as client:
        for number in range(REQUESTS):
            draw = random.Random(number)
            prompt = "".join(draw.choices("abcdefgh ", k=draw.randint(5, 300)))
            body = {"model": model, "prompt": prompt, "max_tokens": 12, "ignore_eos": True}
            said = client.post("/v1/completions", json={**body, "temperature": 0}).json()
            routed = np.load(io.BytesIO(base64.b64decode(said["choices"][0]["routed_experts"])))
            for layer in range(LAYERS):
                want[layer] += np.bincount(routed[:, layer].ravel(), minlength=EXPERTS)
            time.sleep(0.2)  # so that the log goes on in another file
    return want


@contextmanager
def serving(command: list[str], env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[Any]]:
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **env}, stdout=output, stderr=output
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_ready(url: str, process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.5)
    raise AssertionError("the server did not come up")


@pytest.fixture(scope="module")
def recorded(
    vllm_python: str, tiny_mixtral: Model, tmp_path_factory: pytest.TempPathFactory
) -> Recorded:
    backend = cpu_backend(vllm_python, extra_args=ARGUMENTS, env=CPU)
    launch = vllm.launch(backend, tiny_mixtral, None, 0)
    place = tmp_path_factory.mktemp("record")
    options = ["--out", str(place / "logs"), "--rotate", "1s", "--keep", "50MB"]
    program = [sys.executable, "-m", "core.cli", "record", *options, "--", *launch.command]
    env, url = {**launch.env, "VLLM_API_KEY": "key"}, f"http://127.0.0.1:{backend.port}"
    with serving(program, env, place / "output") as process:
        wait_ready(url, process)
        want = ask_all(url, tiny_mixtral.id)
        time.sleep(2.0)  # the writer is a moment behind
        process.send_signal(signal.SIGTERM)
        code = process.wait(120)
    output = (place / "output").read_text()
    return Recorded(place / "logs" / "gate_logs", output, code, want)


def counts(folder: Path) -> list[list[int]]:
    found: list[list[int]] = gate_folder.read(folder).loads.sum(axis=0, dtype=np.int64).tolist()
    return found


def test_counts_are_those_that_vllm_reports(recorded: Recorded) -> None:
    assert recorded.want.sum() > 0
    assert counts(recorded.gate_logs) == recorded.want.tolist()
    assert len(part_files(recorded.gate_logs / "dp0_pp0.gatelog")) > 1


def test_the_output_is_the_servers_own(recorded: Recorded) -> None:
    assert "gatescope" not in recorded.output.replace(str(ROOT), "")
    assert recorded.code in (0, -signal.SIGTERM)  # vLLM's own, by version


def test_the_log_is_measured_without_labels(recorded: Recorded) -> None:
    found, problems = measured_folder.measure_folder(recorded.gate_logs.parent)
    assert problems == []
    assert list(found) == ["gate_logs"]
    assert found["gate_logs"].tokens * LAYERS * 2 == recorded.want.sum()


def test_a_launched_server_counts_the_same(
    recorded: Recorded, vllm_python: str, tiny_mixtral: Model, tmp_path: Path
) -> None:
    backend = cpu_backend(vllm_python, extra_args=ARGUMENTS, env=CPU)
    with started(backend, tiny_mixtral, tmp_path) as up:
        asyncio.run(up.server.wait_ready(START_S, lambda phase: None))
        want = ask_all(up.server.base_url, tiny_mixtral.id)
        time.sleep(2.0)
        launched = counts(up.gate_logs)
    assert launched == want.tolist() == counts(recorded.gate_logs)
