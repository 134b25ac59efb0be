"""A vLLM server over two nodes of a Slurm on this machine, beside one on one node: the same counts;
and the end of the second node."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import string
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from support import slurm as slurms
from support.cpu_server import START_S, Started, cpu_backend, started
from support.slurm import Slurm

from core.backends import node, supervise, vllm
from core.backends.nodes import check
from core.errors import BackendError
from core.experiment.tables import Backend, Model
from core.routing import folder as gate_folder
from core.routing.gatelog import GateLog

pytestmark = pytest.mark.cluster
REQUESTS = 12
END_S = 15.0
ENV = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """With an allocation of both nodes, whose first is where we are."""
    slurms.needed()
    with (
        slurms.running(tmp_path_factory.mktemp("slurm")) as running,
        pytest.MonkeyPatch.context() as m,
    ):
        words = ["salloc", "--no-shell", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=2"]
        said = subprocess.run(words, capture_output=True, text=True, check=True).stderr
        m.setenv("SLURM_JOB_ID", said.split("job allocation ")[1].split()[0])
        m.setenv("SLURM_JOB_NUM_NODES", "2")
        yield running


def backend(python: str, nodes: int) -> Backend:
    return cpu_backend(python, tensor_parallel=2, nodes=nodes, interface="lo", env=ENV)


async def ask(up: Started, model: str) -> list[str]:
    """The texts that it gives to prompts of the seed, one after the other."""
    draw, texts = random.Random(7), []
    headers = {"Authorization": f"Bearer {up.server.api_key}"}
    async with httpx.AsyncClient(timeout=300.0, trust_env=False, headers=headers) as client:
        for number in range(REQUESTS):
            prompt = "".join(draw.choices(string.ascii_letters, k=draw.randint(5, 200)))
            asked: dict[str, Any] = {"model": model, "prompt": prompt, "temperature": 0}
            asked |= {"max_tokens": draw.randint(2, 20), "ignore_eos": True}
            answer = await client.post(
                f"{up.server.base_url}/v1/completions",
                json=asked,
                headers={"X-Request-Id": f"gs.{number:03}.0"},
            )
            texts.append(answer.raise_for_status().json()["choices"][0]["text"])
    return texts


def whole(folder: Path, log: GateLog | None = None) -> GateLog:
    """The log once it no longer grows."""
    deadline = time.monotonic() + 20
    while True:
        before, log = log, gate_folder.read(folder)
        if time.monotonic() > deadline or (before and 0 < len(before.tokens) == len(log.tokens)):
            return log
        time.sleep(1.5)


@pytest.fixture(scope="module")
def one(vllm_python: str, tiny_mixtral: Model, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a server on one node answers and records."""
    with started(backend(vllm_python, 1), tiny_mixtral, tmp_path_factory.mktemp("one")) as up:
        asyncio.run(up.server.wait_ready(START_S))
        return asyncio.run(ask(up, tiny_mixtral.id)), whole(up.gate_logs)


def test_two_nodes_record_what_one_does_and_the_end_of_one_is_named(
    slurm: Slurm, vllm_python: str, tiny_mixtral: Model, one: Any, tmp_path: Path
) -> None:
    texts, alone = one
    asked = backend(vllm_python, 2)
    with started(asked, tiny_mixtral, tmp_path) as up:
        asyncio.run(up.server.wait_ready(START_S))
        assert asyncio.run(ask(up, tiny_mixtral.id)) == texts
        log = whole(up.gate_logs)
        assert log.tokens.tolist() == alone.tokens.tolist()
        assert np.array_equal(log.loads, alone.loads)
        header = gate_folder.header(up.gate_logs)
        assert header
        assert (header.host, header.node, header.clock_offset_ns) == ("n1", 0, 0)
        met = json.loads((up.gate_logs / node.NODES).read_text())
        assert [(one["rank"], one["host"]) for one in met] == [(0, "n1"), (1, "n2")]
        assert abs(met[1]["clock_offset_ns"]) < 50e6  # one machine, one clock
        ran = vllm.ran(asyncio.run(up.server.version()), up.server.log, 0, up.gate_logs)
        assert ran["nodes"] == "n1, n2"
        assert vllm.mismatches(asked, ran) == []

        lost = [p for p in slurm.processes() if p.environ().get("SLURMD_NODENAME") == "n2"]
        assert lost
        for process in lost:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        killed = time.monotonic()
        while not up.server.has_ended or supervise.marked(up.server.mark):
            assert time.monotonic() - killed < END_S, up.server.log.read_text()[-3000:]
            time.sleep(0.1)
        assert "node n2 (rank 1 of 2): it is gone" in up.server.death(), up.server.log.read_text()


def test_where_there_is_no_allocation_of_two_nodes_it_says_how_to_get_one() -> None:
    two = Backend(name="wide", nodes=2)
    with pytest.raises(BackendError, match="no Slurm allocation; start it with --executor slurm"):
        check(two, {})
    with pytest.raises(BackendError, match="an allocation of 1"):
        check(two, {"SLURM_JOB_NUM_NODES": "1"})
    with pytest.raises(BackendError, match="not the first node"):
        check(two, {"SLURM_JOB_NUM_NODES": "2", "SLURM_NODEID": "1"})
    check(two, {"SLURM_JOB_NUM_NODES": "2", **os.environ, "SLURM_NODEID": "0"})
