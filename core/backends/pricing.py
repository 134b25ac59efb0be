"""Times the MoE kernel of a backend alone, before its server takes the GPU: once for each GPU,
vLLM version and shape, and kept."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from core import files
from core.backends import modelfiles, nvml, vllm
from core.errors import BackendError, FileError
from core.experiment.tables import Backend, Model

MODULE = "gatescope_recorder.kernel_times"
BUDGET_S = 140.0
START_S = 180.0  # importing vLLM, and compiling the kernel for the first size
LARGEST = 2048  # tokens: beyond it a price grows with its waves


def price_list(backend: Backend, model: Model) -> tuple[Path | None, str]:
    """The file of this backend's price list, measured now if it is not there; or why there can be
    none."""
    if why := _why_not(backend, model):
        return None, why
    part = shape(backend, model)
    try:
        file = files.cache() / "prices" / f"{_key(backend, part)}.json"
        if file.exists():
            return file, ""
        file.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, FileError) as error:
        return None, f"its price list cannot be kept: {error}"
    return _measured(backend, part, file)


def _why_not(backend: Backend, model: Model) -> str:
    if backend.moe_backend != "triton":
        return f"moe_backend {backend.moe_backend!r}: only vLLM's Triton kernel is timed alone"
    if backend.eplb:
        return "EPLB moves experts between ranks"
    if not nvml.seen(backend.env):
        return "no GPU is seen"
    found, widths = (
        read(model.id, backend.env) for read in (modelfiles.moe_shape, modelfiles.expert_widths)
    )
    if not found or not widths:
        return f"no config.json of {model.id} on this machine names its experts and their sizes"
    count, what = (found[0], "experts") if backend.expert_parallel else (widths[1], "columns")
    if count % backend.ranks:
        return f"{count} {what} are not shared evenly by {backend.ranks} ranks"
    return ""


def shape(backend: Backend, model: Model) -> dict[str, int]:
    """The options that name one rank's part: whole experts under expert parallelism; else a slice
    of every expert, over tensor- and data-parallel ranks alike, as vLLM cuts them."""
    experts, top_k = modelfiles.moe_shape(model.id, backend.env) or (0, 0)
    hidden, inter = modelfiles.expert_widths(model.id, backend.env) or (0, 0)
    is_split = backend.expert_parallel
    return {
        "experts": experts,
        "local": experts // backend.ranks if is_split else experts,
        "top-k": top_k,
        "hidden": hidden,
        "inter": inter if is_split else inter // backend.ranks,
        "largest": min(backend.max_num_batched_tokens * backend.data_parallel, LARGEST),
    }


def _key(backend: Backend, part: dict[str, int]) -> str:
    gpu = nvml.seen(backend.env)[0].name
    parts = [gpu, f"vllm {vllm.check(backend).version}", *map(str, part.values())]
    return re.sub(r"[^A-Za-z0-9.]+", "-", "_".join(parts))


def _measured(backend: Backend, part: dict[str, int], file: Path) -> tuple[Path | None, str]:
    options = [word for name, value in part.items() for word in (f"--{name}", str(value))]
    python = vllm.check(backend).python
    command = [python, "-m", MODULE, *options, "--budget-s", f"{BUDGET_S:g}", "--out", str(file)]
    ours = {**os.environ, **backend.env}
    path = os.pathsep.join(filter(None, (str(vllm.RECORDER), ours.get("PYTHONPATH"))))
    env = {**ours, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    try:
        done = subprocess.run(
            command, env=env, stdout=sys.stderr, stderr=subprocess.PIPE, timeout=BUDGET_S + START_S
        )
    except subprocess.TimeoutExpired:
        return None, f"the kernel could not be timed within {BUDGET_S + START_S:g} s"
    except OSError as error:
        raise BackendError(f"{python}: cannot be started: {error.strerror}") from None
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        return None, f"timing the kernel failed: {''.join(last) or f'exit code {done.returncode}'}"
    return file, ""
