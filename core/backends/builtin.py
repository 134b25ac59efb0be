"""The command line of the built-in engine, and what it says that it ran."""

from __future__ import annotations

import sys
from pathlib import Path

from core.config import Backend, Model

ENGINE = "builtin (NumPy, CPU)"
MODEL_NAME = "gatescope-tiny-mixtral"


def command(backend: Backend, model: Model, gate_log: Path | None, seed: int) -> list[str]:
    """Arguments that serve the built-in model as `backend` asks: its layout, port and limits."""
    if backend.expert_parallel:
        layout = ["--data-parallel-size", str(backend.ranks), "--enable-expert-parallel"]
    else:
        layout = ["--tensor-parallel-size", str(backend.ranks)]
    return [
        sys.executable,
        "-m",
        "core.builtin.server",
        *("--host", "127.0.0.1", "--port", str(backend.port)),
        *("--served-model-name", MODEL_NAME),
        *("--max-model-len", str(model.max_model_len)),
        *("--max-num-seqs", str(backend.max_num_seqs)),
        *("--max-num-batched-tokens", str(backend.max_num_batched_tokens)),
        *("--seed", str(seed)),
        *layout,
        *(("--gate-log", str(gate_log)) if gate_log else ()),
        *backend.extra_args,
    ]
