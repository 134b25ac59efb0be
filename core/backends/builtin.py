"""The built-in engine: its command line, and what it says that it ran."""

from __future__ import annotations

import sys
from pathlib import Path

from core.backends.launch import Launch
from core.experiment.config import Backend, Model

ENGINE = "builtin (NumPy, CPU)"
MODEL_NAME = "gatescope-tiny-mixtral"
LAYOUT = ("tensor_parallel_size", "data_parallel_size", "enable_expert_parallel")


def launch(backend: Backend, model: Model, gate_logs: Path | None, seed: int) -> Launch:
    """How to serve the built-in model as `backend` asks. `gate_logs`: a folder for this start's
    log; None: no log."""
    return Launch(
        _command(backend, model, gate_logs, seed), backend.env, MODEL_NAME, "bytes", ENGINE
    )


def ran(version: dict[str, str], log: Path) -> dict[str, str]:
    """What really ran, from /version; the log adds nothing."""
    return {
        key: version[key]
        for key in ("engine", "version", "parallel", "ranks", *LAYOUT, "forced_routing")
        if key in version
    }


def mismatches(backend: Backend, ran: dict[str, str]) -> list[str]:
    """Asked ≠ ran, a sentence each. This engine has one kernel, so only the layout can differ."""
    wanted = _layout(backend)
    return [
        f"asked for {key} {value}, ran {ran[key]}"
        for key, value in wanted.items()
        if key in ran and ran[key].lower() != str(value).lower()
    ]


def warmup_input_lens(backend: Backend, model: Model) -> tuple[int, ...]:
    """None: nothing is compiled."""
    return ()


def _layout(backend: Backend) -> dict[str, int | bool]:
    expert = backend.expert_parallel
    return dict(
        zip(
            LAYOUT,
            (1 if expert else backend.ranks, backend.ranks if expert else 1, expert),
            strict=True,
        )
    )


def _command(backend: Backend, model: Model, gate_logs: Path | None, seed: int) -> list[str]:
    layout = _layout(backend)
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
        *("--tensor-parallel-size", str(layout["tensor_parallel_size"])),
        *("--data-parallel-size", str(layout["data_parallel_size"])),
        *(("--enable-expert-parallel",) if backend.expert_parallel else ()),
        *(("--gate-log", str(gate_logs / "dp0_pp0.gatelog")) if gate_logs else ()),
        *backend.extra_args,
    ]
