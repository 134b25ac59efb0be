"""A newer vLLM than the one whose own routing is the oracle. GATESCOPE_VLLM_PYTHON_032 names its
environment."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from support.cpu_server import START_S, cpu_backend, started

from core.backends import vllm
from core.experiment.tables import Model
from core.routing import folder as gate_folder

PYTHON = os.environ.get("GATESCOPE_VLLM_PYTHON_032", "")
MAKE_MODEL = Path(__file__).parents[1] / "support" / "tiny_mixtral.py"


@pytest.mark.skipif(not PYTHON, reason="GATESCOPE_VLLM_PYTHON_032 names no vLLM environment")
def test_it_serves_and_every_token_is_recorded(tmp_path: Path) -> None:
    subprocess.run(
        [PYTHON, str(MAKE_MODEL), str(tmp_path / "model")], check=True, capture_output=True
    )
    model = Model(id=str(tmp_path / "model"), max_model_len=2048)
    backend = cpu_backend(PYTHON)
    with started(backend, model, tmp_path) as up:
        asyncio.run(up.server.wait_ready(START_S))
        body = {"model": model.id, "prompt": "abc" * 20, "max_tokens": 9, "ignore_eos": True}
        headers = {"Authorization": "Bearer key", "X-Request-Id": "seg.001.0"}
        url = f"{up.server.base_url}/v1/completions"
        httpx.post(
            url, json=body, headers=headers, timeout=120.0, trust_env=False
        ).raise_for_status()
        deadline = time.monotonic() + 10.0
        while (
            log := gate_folder.read(up.gate_logs)
        ).tokens.sum() < 68 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert log.segments["001"].sum() == 60 + 8
        assert (log.loads.sum(axis=2) == 2 * log.tokens[:, None]).all()
        assert (
            vllm.mismatches(backend, vllm.ran(asyncio.run(up.server.version()), up.server.log))
            == []
        )
