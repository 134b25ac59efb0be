"""The recorder against vLLM's own record of its routing, in every layout that a CPU can serve."""

from __future__ import annotations

import asyncio
import base64
import io
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import psutil
import pytest
from support.cpu_server import CPU, CPU_ALL2ALL, START_S, Started, cpu_backend, started
from support.tiny_mixtral import EXPERTS, HIDDEN, LAYERS, TOP_K

from core.backends import supervise, vllm
from core.experiment.tables import Model
from core.routing import folder as gate_folder
from core.routing import gatelog
from core.routing.folder import GateFolder
from core.routing.gatelog import GateLog

REQUESTS = 40
LAYOUTS: dict[str, dict[str, Any]] = {
    "tp1": {},
    "tp2": {"tensor_parallel": 2},
    "dp2-ep": {
        "data_parallel": 2,
        "expert_parallel": True,
        "all2all_backend": "allgather_reducescatter",
    },
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What vLLM reports about one request. `routed` [tokens, layers, top_k]: the experts of every
    token but the last."""

    segment: str
    prompt_tokens: int
    output_tokens: int
    routed: npt.NDArray[np.integer[Any]]

    @property
    def forwarded(self) -> int:
        """Tokens that pass the model: the last token sampled never does."""
        return self.prompt_tokens + self.output_tokens - 1


@pytest.fixture(scope="module", params=LAYOUTS)
def run(
    request: pytest.FixtureRequest,
    vllm_python: str,
    tiny_mixtral: Model,
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    """A server of the layout that has answered REQUESTS simultaneous requests, and its gate log."""
    backend = cpu_backend(
        vllm_python,
        extra_args=["--dtype", "bfloat16", "--enable-return-routed-experts"],
        env={**CPU, "PYTHONPATH": str(CPU_ALL2ALL)},
        **LAYOUTS[request.param],
    )
    with started(backend, tiny_mixtral, tmp_path_factory.mktemp(request.param)) as up:
        phases: list[str] = []
        asyncio.run(up.server.wait_ready(START_S, phases.append))
        answers = asyncio.run(_ask_all(up, tiny_mixtral.id))
        log = _read_until(up.gate_logs, sum(a.forwarded for a in answers))
        ran = vllm.ran(asyncio.run(up.server.version()), up.server.log)
        yield up, answers, log, ran, phases


async def _ask_all(up: Started, model: str) -> list[Answer]:
    async with httpx.AsyncClient(
        base_url=up.server.base_url, timeout=300.0, trust_env=False
    ) as client:
        return list(await asyncio.gather(*(_ask(client, model, n) for n in range(REQUESTS))))


async def _ask(client: httpx.AsyncClient, model: str, number: int) -> Answer:
    """A prompt of 5 to 400 characters and an answer of 1 to 40 tokens; every second request belongs
    to segment "001-r2"."""
    draw = random.Random(number)
    segment = "001-r2" if number % 2 else "002"
    body = {
        "model": model,
        "prompt": "".join(draw.choices("abcdefgh ", k=draw.randint(5, 400))),
        "max_tokens": draw.randint(1, 40),
        "ignore_eos": True,
        "temperature": 0,
    }
    headers = {"X-Request-Id": f"seg.{segment}.{number}", "Authorization": "Bearer key"}
    answer = (
        (await client.post("/v1/completions", json=body, headers=headers)).raise_for_status().json()
    )
    routed = np.load(io.BytesIO(base64.b64decode(answer["choices"][0]["routed_experts"])))
    usage = answer["usage"]
    return Answer(segment, usage["prompt_tokens"], usage["completion_tokens"], routed)


def _read_until(folder: Path, tokens: int) -> GateLog:
    """The log, once it holds this many tokens: the writer is a moment behind."""
    deadline = time.monotonic() + 20.0
    while (log := gate_folder.read(folder)).tokens.sum() < tokens and time.monotonic() < deadline:
        time.sleep(0.05)
    return log


def test_counts_are_exactly_what_vllm_says_of_its_requests(run: Any) -> None:
    _, answers, log, _, _ = run
    want = np.zeros((LAYERS, EXPERTS), np.int64)
    for answer in answers:
        assert answer.routed.shape == (answer.forwarded, LAYERS, TOP_K)
        for layer in range(LAYERS):
            want[layer] += np.bincount(answer.routed[:, layer].ravel(), minlength=EXPERTS)
    assert log.loads.sum(axis=0, dtype=np.int64).tolist() == want.tolist()


def test_every_step_and_layer_adds_up_and_no_dummy_or_warm_up_token_is_in(run: Any) -> None:
    up, answers, log, _, _ = run
    assert (log.loads.sum(axis=2) == TOP_K * log.tokens[:, None]).all()
    assert log.tokens.sum() == sum(a.forwarded for a in answers)
    assert log.columns["prefill_tokens"].sum() == sum(a.prompt_tokens for a in answers)
    assert log.columns["decode_tokens"].sum() == sum(a.output_tokens - 1 for a in answers)
    assert gate_folder.problems(up.gate_logs) == []


def test_segments_are_told_apart(run: Any) -> None:
    _, answers, log, _, _ = run
    for segment in ("001-r2", "002"):
        assert log.segments[segment].sum() == sum(
            a.forwarded for a in answers if a.segment == segment
        )
    assert sum(log.segments.values()).tolist() == log.tokens.tolist()


def test_steps_follow_each_other_in_time(run: Any) -> None:
    _, _, log, _, _ = run
    assert (np.diff(log.columns["index"]) > 0).all()
    assert (np.diff(log.columns["start_ns"]) > 0).all()
    assert (log.columns["duration_ns"] > 0).all()


def test_what_ran_is_what_was_requested_for(run: Any) -> None:
    up, _, _, ran, phases = run
    assert vllm.mismatches(up.backend, ran) == []
    assert ran["recorder"].startswith(f"records {LAYERS} layers x {EXPERTS} experts, top-{TOP_K}")
    assert phases[0] == "loading weights"


def _end_together(paths: list[Path]) -> bool:
    """Whether all logs reach the same last forward pass; each rank writes its block when it is
    due."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if len({int(gatelog.read(path).columns["index"][-1]) for path in paths}) == 1:
            return True
        time.sleep(0.1)
    return False


def test_ranks_write_the_same_forward_passes_and_know_who_holds_an_expert(run: Any) -> None:
    up, _, log, _, _ = run
    paths = sorted(up.gate_logs.glob("*.gatelog"))
    assert [p.name for p in paths] == [
        f"dp{n}_pp0.gatelog" for n in range(up.backend.data_parallel)
    ]
    assert _end_together(paths)
    merged = GateFolder(up.gate_logs)
    merged.read()
    assert merged.incomplete == 0
    assert log.placement == ((0, 0, 0, 0, 1, 1, 1, 1) if up.backend.expert_parallel else ())


def test_the_kernel_and_its_shapes_are_named_and_a_cpu_publishes_no_tiling(run: Any) -> None:
    up, *_ = run
    kernel = gate_folder.kernel(up.gate_logs)
    assert kernel
    local = EXPERTS // 2 if up.backend.expert_parallel else EXPERTS
    inner = 256 // up.backend.tensor_parallel
    assert (kernel.name, kernel.dtype, kernel.top_k) == ("CPU", "bfloat16", TOP_K)
    assert (kernel.experts, kernel.local_experts) == (EXPERTS, local)
    assert kernel.columns == (2 * inner, HIDDEN)
    assert (kernel.tilings, kernel.source, kernel.sms) == ((), "", 0)


def test_all_of_it_goes_when_its_supervisor_is_killed(run: Any) -> None:
    """This is the last test of each layout. vLLM's processes overwrite their environment with their
    titles."""
    up, *_ = run
    tree = supervise.marked(up.server.mark)
    assert "VLLM::EngineCore" in " ".join(process.name() for process in tree)
    up.server.process.kill()
    _, left = psutil.wait_procs(tree, timeout=15.0)
    assert left == []
    assert supervise.marked(up.server.mark) == []
