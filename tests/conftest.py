"""A small experiment on the built-in engine, and an engine that runs it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from support.watched import Watched, free_port

from core.engine import detached
from core.experiment import control
from core.experiment.control import Stop
from core.experiment.invocation import Invocation

# Property tests are quick in the suite. `GATESCOPE_FUZZ=nightly uv run pytest -m fuzz` tries more.
settings.register_profile(
    "quick", max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("bench", settings.get_profile("quick"), max_examples=500)
settings.register_profile("nightly", settings.get_profile("quick"), max_examples=10_000)
settings.load_profile(os.environ.get("GATESCOPE_FUZZ", "quick"))


BACKEND = """port = {port}
tensor_parallel = 1
data_parallel = 1
max_num_batched_tokens = 256
"""
CONFIG = """[experiment]
engine = "builtin"
datasets = "*.jsonl"
num_prompts = 4
output_len = 200
max_concurrency = 1
shuffle = false
warmup_requests = 1
[model]
max_model_len = 1024
[[backends]]
name = "baseline"
{backend}[[backends]]
name = "all2all"
expert_parallel = true
{backend}"""


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """Two backends, three datasets, and runs long enough to be interrupted."""
    port = free_port()
    for index in ("001", "002", "003"):
        lines = [{"id": f"q{i}", "text": f"question {i} of {index}"} for i in range(4)]
        (tmp_path / f"{index}_0.5.jsonl").write_bytes(
            b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
        )
    backend = BACKEND.format(port=port)
    (tmp_path / "experiments.toml").write_text(CONFIG.format(backend=backend))
    return tmp_path / "experiments.toml"


@pytest.fixture
def engine(experiment: Path, tmp_path: Path) -> Iterator[Watched]:
    """A detached engine that runs the experiment."""
    watched = Watched(detached.start(Invocation(experiment, tmp_path / "run")))
    yield watched
    if control.is_live(watched.run_dir):
        control.send(watched.run_dir, Stop())
    watched.wait()
