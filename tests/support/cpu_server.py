"""Servers of vLLM's CPU build, started as gatescope starts them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.watched import free_port

from core.backends import server as servers
from core.backends import vllm
from core.backends.server import Server
from core.experiment.tables import Backend, Model

CPU_ALL2ALL = Path(__file__).parent / "cpu_all2all"
CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "0|1"}
START_S = 600.0  # a quiet machine takes 40 s


def cpu_backend(python: str, **given: object) -> Backend:
    """A backend that the CPU build can serve: no choice of kernels, no graphs, one core a rank."""
    settings: dict[str, object] = {
        "name": "cpu",
        "port": free_port(),
        "tensor_parallel": 1,
        "max_num_batched_tokens": 2048,
        "moe_backend": "",
        "enforce_eager": True,
        "python": python,
        "extra_args": ["--dtype", "bfloat16"],
        "env": CPU,
        **given,
    }
    return Backend(**settings)  # type: ignore[arg-type]  # ** has one type


@dataclass(frozen=True, slots=True)
class Started:
    """A server that was started, its backend, and the folder of its gate logs."""

    server: Server
    backend: Backend
    gate_logs: Path


@contextmanager
def started(backend: Backend, model: Model, folder: Path) -> Iterator[Started]:
    """Start a server of this backend as gatescope does, and stop it at the end."""
    gate_logs = folder / "gate_logs"
    gate_logs.mkdir()
    launch = vllm.launch(backend, model, gate_logs, 0)
    log = folder / "server.log"
    server = servers.start(
        backend.name, launch.command, port=backend.port, api_key="key", log=log, env=launch.env
    )
    try:
        yield Started(server, backend, gate_logs)
    finally:
        server.stop()
