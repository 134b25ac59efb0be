"""A vLLM whose log says nothing of what runs: it is recorded, and can be forced, all the same."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from support.cpu_server import CPU, START_S, cpu_backend, started

from core.backends import vllm
from core.experiment.tables import Model
from core.recorder.gatescope_recorder.order import VARIABLE, Order

ORDER = Order(("hot-experts~1",), ranks=1, seed=0)


@pytest.mark.parametrize(
    "setting", ["VLLM_LOGGING_LEVEL", "VLLM_CONFIGURE_LOGGING", "VLLM_LOGGING_CONFIG_PATH"]
)
def test_the_workers_own_record_is_enough(
    vllm_python: str, tiny_mixtral: Model, tmp_path: Path, setting: str
) -> None:
    quiet = tmp_path / "logging.json"
    quiet.write_text(json.dumps({"version": 1, "root": {"level": "ERROR"}}))
    values = {
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_CONFIGURE_LOGGING": "0",
        "VLLM_LOGGING_CONFIG_PATH": str(quiet),
    }
    env = {**CPU, VARIABLE: ORDER.encode(), setting: values[setting]}
    backend = cpu_backend(vllm_python, env=env)
    with started(backend, tiny_mixtral, tmp_path) as up:
        asyncio.run(up.server.wait_ready(START_S))
        version = asyncio.run(up.server.version())
        ran = vllm.ran(version, up.server.log, 0, up.gate_logs)
    assert "gatescope recorder" not in up.server.log.read_text(errors="replace")
    assert vllm.mismatches(backend, ran) == []
    assert ran["recorder"].startswith("records 4 layers x 8 experts, top-2, dp 0 of 1")
    assert ran["forced_routing"] == "on for hot-experts~1; 1 ranks, seed 0"
    assert ran["tensor_parallel_size"] == "1"
    assert ran["cudagraph_mode"] == "NONE"
    assert (ran["dtype"], ran["prefix_caching"]) == ("bfloat16", "False")
    assert ran["log"].startswith("silent")
