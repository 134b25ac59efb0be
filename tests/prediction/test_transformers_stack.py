"""Checkpoints of every family, streamed layer by layer, against transformers' own forward pass."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

PYTHON = os.environ.get("GATESCOPE_VLLM_PYTHON", "")
SCRIPT = Path(__file__).parents[1] / "support" / "streamed_families.py"

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        not PYTHON, reason="GATESCOPE_VLLM_PYTHON names no interpreter with torch and transformers"
    ),
]


def test_every_family_is_routed_as_by_an_ordinary_forward_pass(tmp_path: Path) -> None:
    """In float32 every token's set of experts is the same, in every layer that has experts:
    DeepSeek's first is dense. A damaged checkpoint is refused in a line."""
    done = subprocess.run(
        [PYTHON, str(SCRIPT), str(tmp_path)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    agreement, refused = map(json.loads, done.stdout.splitlines()[-2:])
    for what, said in refused.items():
        unread = ": cannot be read as a checkpoint: "
        assert said.startswith((unread, "damaged: the checkpoint lacks ")), (what, said)
        assert len(said.splitlines()) == 1
    assert len(refused) == 7
    assert agreement == {
        "mixtral": [1.0] * 3,
        "qwen2_moe": [1.0] * 3,
        "qwen3_moe": [1.0] * 3,
        "deepseek_v2": [1.0] * 2,
        "deepseek_v3": [1.0] * 2,
        "olmoe": [1.0] * 3,
    }
