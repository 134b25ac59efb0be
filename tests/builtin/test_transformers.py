"""The logits against Hugging Face's MixtralForCausalLM: on the checkpoint that comes with
gatescope, and on random weights, which it reads from a published form."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from core.builtin import checkpoint
from core.builtin.batch import Batch, Span
from core.builtin.kv_cache import KVCache
from core.builtin.model import Model
from core.builtin.parallel import Layout, Ranks, Split
from core.builtin.tokenizer import encode
from core.builtin.weights import Floats, Ints, Shape, Weights

PYTHON = os.environ.get("GATESCOPE_VLLM_PYTHON", "")
SCRIPT = Path(__file__).parents[1] / "support" / "transformers_mixtral.py"
TEXT = (
    "Should a router that has learned to tell bytes apart send “naïve” prose and code\n"
    "    for i in range(8): print(i ** 2)\nto the same experts? 3.14, Ünïcode, </s> and all that."
)
TOLERANCE = 4e-5  # two float32 computations, logits of up to 27

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        not PYTHON, reason="GATESCOPE_VLLM_PYTHON names no interpreter with torch and transformers"
    ),
]


def transformers_logits(given: Path, folder: Path) -> Floats:
    """transformers' logits of the prompt in `given`, whose weights, if any, are written to
    `folder` first."""
    out = given.with_name("logits.npy")
    command = [PYTHON, str(SCRIPT), str(given), str(folder), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    logits: Floats = np.load(out)
    return logits


def assert_same_logits(shape: Shape, weights: Weights, tokens: Ints, theirs: Floats) -> None:
    """Ours, token by token and in one piece."""
    with contextlib.closing(Ranks(shape, weights, Layout(Split.TENSOR, 1), 256)) as ranks:
        model = Model(shape, weights, KVCache(shape, 1, len(tokens)), ranks)
        ours = [
            model.forward(Batch.of([Span(0, i, [int(token)], True)])).logits[0]
            for i, token in enumerate(tokens)
        ]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)
        whole = model.forward(Batch.of([Span(0, 0, tokens.tolist(), True)])).logits[0]
        np.testing.assert_allclose(whole, theirs[-1], rtol=0, atol=TOLERANCE)


def test_the_trained_weights_give_the_logits_of_transformers_mixtral(tmp_path: Path) -> None:
    tokens = np.array(encode(TEXT))
    np.savez(tmp_path / "given.npz", tokens=tokens)
    theirs = transformers_logits(tmp_path / "given.npz", checkpoint.FOLDER)
    weights = checkpoint.read(checkpoint.FOLDER, Shape())
    assert_same_logits(Shape(), weights, tokens, theirs)


@pytest.mark.parametrize(
    "shape",
    [Shape(), Shape(layers=2, hidden=96, heads=8, head_dim=16, intermediate=448, experts=6)],
    ids=["served", "another"],
)
def test_random_weights_give_the_logits_of_transformers_mixtral(
    tmp_path: Path, shape: Shape
) -> None:
    weights = Weights.seeded(shape, 0)
    tokens = np.random.default_rng(1).integers(0, shape.vocab, 120)
    arrays = {name: getattr(weights, name) for name in Weights.__dataclass_fields__}
    given = tmp_path / "given.npz"
    np.savez(given, tokens=tokens, shape=json.dumps(asdict(shape)), **arrays)
    (tmp_path / "checkpoint").mkdir()
    theirs = transformers_logits(given, tmp_path / "checkpoint")
    assert_same_logits(shape, weights, tokens, theirs)
