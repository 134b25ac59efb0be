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

# Property tests, quick in the suite; `GATESCOPE_FUZZ=nightly uv run pytest -m fuzz` is the long
# way.
settings.register_profile("quick", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("nightly", settings.get_profile("quick"), max_examples=10_000)
settings.load_profile(os.environ.get("GATESCOPE_FUZZ", "quick"))


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """Two backends, three datasets, runs long enough to be met on the way."""
    port = free_port()
    for index in ("001", "002", "003"):
        lines = [{"id": f"q{i}", "text": f"question {i} of {index}"} for i in range(4)]
        (tmp_path / f"{index}_0.5.jsonl").write_bytes(
            b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
        )
    backend = (
        f"port = {port}\ntensor_parallel = 1\ndata_parallel = 1\nmax_num_batched_tokens = 256\n"
    )
    (tmp_path / "experiments.toml").write_text(
        '[experiment]\nengine = "builtin"\ndatasets = "*.jsonl"\nnum_prompts = 4\noutput_len = 200\n'
        "max_concurrency = 1\nshuffle = false\nwarmup_requests = 1\n[model]\nmax_model_len = 1024\n"
        f'[[backends]]\nname = "baseline"\n{backend}[[backends]]\nname = "all2all"\nexpert_parallel = true\n{backend}'
    )
    return tmp_path / "experiments.toml"


@pytest.fixture
def engine(experiment: Path, tmp_path: Path) -> Iterator[Watched]:
    watched = Watched(detached.start(Invocation(experiment, tmp_path / "run")))
    yield watched
    if control.is_live(watched.run_dir):
        control.send(watched.run_dir, Stop())
    watched.wait()
