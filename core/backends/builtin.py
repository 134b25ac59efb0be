"""The built-in engine: its command line, and what it reports to be running."""

from __future__ import annotations

import sys
from pathlib import Path

from core.backends.launch import Launch, as_words
from core.experiment.tables import Backend, Model

ENGINE = "builtin (NumPy, CPU)"
MODEL_NAME = "gatescope-tiny-mixtral"
LAYOUT = ("tensor_parallel_size", "data_parallel_size", "enable_expert_parallel")


def launch(backend: Backend, model: Model, gate_logs: Path | None, seed: int) -> Launch:
    """How to serve the built-in model as `backend` asks. `gate_logs`: a folder for this start's
    log; None: no log."""
    command = _command(backend, model, gate_logs, seed)
    # Greedy answers of the trained model fall into loops, which would be measured instead of it.
    temperature = 1.0 if model.weights == "trained" else 0.0
    return Launch(command, backend.env, MODEL_NAME, "bytes", label(model), temperature)


def label(model: Model) -> str:
    """The engine as it is shown; its weights are named where they are random."""
    return ENGINE if model.weights == "trained" else f"{ENGINE}, random weights"


def is_label(engine: str) -> bool:
    """Whether an engine that a screen or file names is this one."""
    return engine.startswith(ENGINE)


def ran(
    version: dict[str, str], log: Path, since: int = 0, gate_logs: Path | None = None
) -> dict[str, str]:
    """What is running, from /version; the log adds nothing."""
    return {
        key: version[key]
        for key in ("engine", "version", "parallel", "ranks", *LAYOUT, "weights", "forced_routing")
        if key in version
    }


def mismatches(backend: Backend, ran: dict[str, str]) -> list[str]:
    """What is running but was not requested. This engine has one kernel, so only its layout can
    differ."""
    wanted = _layout(backend)
    return [
        f"requested {key} {value}, running {ran[key]}"
        for key, value in wanted.items()
        if key in ran and ran[key].lower() != str(value).lower()
    ]


def warmup_input_lens(backend: Backend, model: Model) -> tuple[int, ...]:
    """Empty: nothing is compiled."""
    return ()


def warmup_skipped(backend: Backend, model: Model) -> str:
    """Empty: nothing is compiled."""
    return ""


def _layout(backend: Backend) -> dict[str, int]:
    """The built-in engine shards either each matrix or the experts, over all ranks."""
    tensor, data = (1, backend.ranks) if backend.expert_parallel else (backend.ranks, 1)
    return dict(zip(LAYOUT, (tensor, data, backend.expert_parallel), strict=True))


def _command(backend: Backend, model: Model, gate_logs: Path | None, seed: int) -> list[str]:
    layout = _layout(backend)
    options: dict[str, str | int] = {
        "--host": "127.0.0.1",
        "--port": backend.port,
        "--served-model-name": MODEL_NAME,
        "--max-model-len": model.max_model_len,
        "--max-num-seqs": backend.max_num_seqs,
        "--max-num-batched-tokens": backend.max_num_batched_tokens,
        "--weights": model.weights,
        "--seed": seed,
        "--tensor-parallel-size": layout["tensor_parallel_size"],
        "--data-parallel-size": layout["data_parallel_size"],
        "--enable-expert-parallel": backend.expert_parallel,
        "--gate-log": str(gate_logs / "dp0_pp0.gatelog") if gate_logs else "",
    }
    return [sys.executable, "-m", "core.builtin.server", *as_words(options), *backend.extra_args]
