"""Recorded routing, replayed on real vLLM: the loads are the log's, count for count."""

from __future__ import annotations

import json
import os
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import fake_nvml
from support.cpu_server import START_S
from support.gate_logs import write_layers
from support.synthetic import routed
from support.watched import free_port

from core.experiment.tables import Model
from core.routing import folder as gate_folder

PROMPTS, WATTS = 4, 500
CONFIG = """
[experiment]
engine = "vllm"
datasets = "001_0.5.jsonl"
num_prompts = {prompts}
output_len = 24
warmup_requests = 1
[model]
id = "{model}"
max_model_len = 512
[[backends]]
name = "baseline"
port = {port}
tensor_parallel = 1
python = "{python}"
moe_backend = ""
max_num_batched_tokens = 512
enforce_eager = true
startup_timeout_s = {start_s}
extra_args = ["--dtype", "bfloat16"]
[backends.env]
VLLM_CPU_KVCACHE_SPACE = "1"
VLLM_CPU_OMP_THREADS_BIND = "0|1"
"""


def recorded(folder: Path) -> np.ndarray:
    """Upstream's logs of a hot router, whose steps have as many tokens as there are prompts."""
    weights = np.array([9.0, 9.0, 1, 1, 1, 1, 1, 1])
    loads = routed(np.random.default_rng(5), [PROMPTS] * 8, 4, weights)
    by_layer = loads.transpose(1, 0, 2).astype(float).tolist()
    write_layers(folder / "gates_logs_01", by_layer, [PROMPTS] * 8)
    return loads


@pytest.fixture(scope="module")
def replayed(
    vllm_python: str, tiny_mixtral: Model, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, np.ndarray]:
    folder = tmp_path_factory.mktemp("replay")
    loads = recorded(folder / "logs")
    (folder / "experiments.toml").write_text(
        CONFIG.format(
            prompts=PROMPTS,
            model=tiny_mixtral.id,
            port=free_port(),
            python=vllm_python,
            start_s=START_S,
        )
    )
    lines = [json.dumps({"id": str(n), "text": string.printable[n:][:40]}) for n in range(PROMPTS)]
    (folder / "001_0.5.jsonl").write_text("\n".join(lines) + "\n")
    arguments = ("--config", str(folder / "experiments.toml"), "--out", str(folder / "run"))
    with pytest.MonkeyPatch.context() as patch:
        fake_nvml.install(folder, patch, {**fake_nvml.H200, "watts": WATTS, "limit_w": 700})
        env = dict(os.environ)
    done = subprocess.run(
        [sys.executable, "-m", "core.cli", "--batch", *arguments, "--replay", folder / "logs"],
        capture_output=True,
        text=True,
        timeout=2 * START_S,
        env=env,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "run" / "baseline", loads


def result(backend: Path) -> dict[str, Any]:
    return dict(json.loads((backend / "results_json/001~replay~001.json").read_bytes()))


def test_steps_of_the_logs_size_have_its_loads_count_for_count_one_after_the_other(
    replayed: tuple[Path, np.ndarray],
) -> None:
    backend, loads = replayed
    own = gate_folder.read(backend / "gate_logs").of("001~replay~001")
    whole = (own.columns["prefill_tokens"] == 0) & (own.tokens == PROMPTS)
    first = int(whole.argmax())
    run = int((~whole[first:]).argmax()) or len(whole) - first
    assert run > 8  # the log goes round
    place = next(n for n, step in enumerate(loads) if np.array_equal(step, own.loads[first]))
    for n in range(run):
        assert np.array_equal(own.loads[first + n], loads[(place + n) % 8])


def test_the_result_says_how_its_steps_were_made(replayed: tuple[Path, np.ndarray]) -> None:
    made = result(replayed[0])["replayed_routing"]
    assert (made["source"], made["layers"], made["recorded_layers"]) == ("001", 4, 4)
    assert made["decode"]["exact"] > 8
    assert made["decode"]["natural"] == made["decode"]["unproven"] == 0
    assert made["prefill"]["natural"] >= 1
    assert result(replayed[0])["forced_routing"] is None


@pytest.mark.parametrize("label", ["001", "001~replay~001"])
def test_energy_is_the_counters_rise_over_the_run_and_over_its_phases(
    replayed: tuple[Path, np.ndarray], label: str
) -> None:
    """A GPU that uses 500 W all the time, at 1410 MHz."""
    got = json.loads((replayed[0] / f"results_json/{label}.json").read_bytes())
    assert got["energy_j"] == pytest.approx(WATTS * got["duration"], rel=0.05)
    assert got["j_per_output_token"] == got["energy_j"] / got["total_output_tokens"]
    assert got["sm_clock_mhz"] == pytest.approx(1410)
    assert (got["power_limit_w"], got["energy_reason"]) == (700, None)
    for phase in got["energy_phases"].values():
        assert phase["energy_j"] == pytest.approx(WATTS * phase["seconds"], rel=0.05)
        assert phase["sm_clock_mhz"] == pytest.approx(1410)
    assert set(got["energy_phases"]) == {"prefill", "decode"}
    assert got["energy_phases"]["decode"]["tokens"] > PROMPTS
