"""Real vLLM on a CPU: the environment that GATESCOPE_VLLM_PYTHON names, and a tiny model."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from core.experiment.tables import Model

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder, and skip them without the variable. If it names an environment
    that is missing, they fail instead."""
    missing = "GATESCOPE_VLLM_PYTHON" not in os.environ
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            if missing:
                item.add_marker(
                    pytest.mark.skip(reason="GATESCOPE_VLLM_PYTHON names no vLLM environment")
                )


@pytest.fixture(scope="session")
def vllm_python() -> str:
    return os.environ["GATESCOPE_VLLM_PYTHON"]


@pytest.fixture(scope="session")
def tiny_mixtral(vllm_python: str, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A seeded random Mixtral of 4 layers, 8 experts, top-2."""
    folder = tmp_path_factory.mktemp("tiny-mixtral")
    subprocess.run(
        [vllm_python, str(HERE.parent / "support" / "tiny_mixtral.py"), str(folder)],
        check=True,
        capture_output=True,
    )
    return Model(id=str(folder), max_model_len=2048)
