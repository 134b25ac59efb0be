"""The logits against Hugging Face's MixtralForCausalLM, which reads the same weights from a
published form."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from core.builtin.batch import Batch, Span
from core.builtin.kv_cache import KVCache
from core.builtin.model import Model
from core.builtin.parallel import Layout, Ranks, Split
from core.builtin.weights import Shape, Weights

PYTHON = os.environ.get("GATESCOPE_VLLM_PYTHON", "")
SCRIPT = Path(__file__).parents[1] / "support" / "transformers_mixtral.py"
TOLERANCE = 2e-5  # two float32 computations, logits of up to 4


@pytest.mark.vllm
@pytest.mark.skipif(
    not PYTHON, reason="GATESCOPE_VLLM_PYTHON names no interpreter with torch and transformers"
)
def test_logits_agree_with_transformers_mixtral(tmp_path: Path) -> None:
    shape = Shape()
    weights = Weights.seeded(shape, 0)
    tokens = np.random.default_rng(1).integers(0, shape.vocab, 120)
    arrays = {name: getattr(weights, name) for name in Weights.__dataclass_fields__}
    np.savez(tmp_path / "weights.npz", tokens=tokens, shape=json.dumps(asdict(shape)), **arrays)
    checkpoint, out = tmp_path / "checkpoint", tmp_path / "logits.npy"
    checkpoint.mkdir()
    command = [PYTHON, str(SCRIPT), str(tmp_path / "weights.npz"), str(checkpoint), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = np.load(out)

    ranks = Ranks(shape, weights, Layout(Split.TENSOR, 1), 128)
    model = Model(shape, weights, KVCache(shape, 1, len(tokens)), ranks)
    ours = [model.forward(Batch.of([Span(0, 0, tokens[:1].tolist(), True)])).logits[0]]
    ours += [
        model.forward(Batch.of([Span(0, i, [int(tokens[i])], True)])).logits[0]
        for i in range(1, len(tokens))
    ]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)
    whole = model.forward(Batch.of([Span(0, 0, tokens.tolist(), True)])).logits[0]
    np.testing.assert_allclose(whole, theirs[-1], rtol=0, atol=TOLERANCE)
