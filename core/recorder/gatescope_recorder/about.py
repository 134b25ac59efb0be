"""What a worker reports of itself, in a file of its own beside the gate logs.

The server's log says the same, but only where its settings (VLLM_LOGGING_LEVEL, …) let it.
"""

from __future__ import annotations

import enum
import json
import logging
import platform
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import beside

if TYPE_CHECKING:
    from .routers import Layer

SUFFIX = ".gatelog.about.json"

log = logging.getLogger("vllm.gatescope_recorder")


class About:
    """One worker's file: {"recorder": "records 32 layers …", "forced_routing": "on for …", …}."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}{SUFFIX}"
        self.facts = {"python": platform.python_version(), "node": platform.node()}
        for module in ("vllm", "torch", "numpy"):
            self.facts[module] = str(getattr(sys.modules.get(module), "__version__", "unknown"))
        self._lock = threading.Lock()  # the engine's thread writes, and the gate log's

    def note(self, **facts: str) -> None:
        """Add to the file. A folder that cannot be written costs the record, never the server."""
        with self._lock:
            self.facts |= facts
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                beside.write(self.path, json.dumps(self.facts) + "\n")
            except OSError as error:
                log.error("gatescope recorder: %s cannot be written: %s", self.path, error)


def running(config: Any, layers: Sequence[Layer], ranks: int) -> dict[str, str]:
    """Kernel, layout and graphs, under the names that run.json has. What this version keeps
    elsewhere is left out: the log may show it. `ranks`: expert-parallel ones."""
    parallel, model = config.parallel_config, config.model_config
    mode = getattr(config.compilation_config, "cudagraph_mode", None)
    found = {
        "moe_backend": kernel_name(layers),
        "all2all_backend": _manager() if ranks > 1 else "",
        "dtype": str(getattr(model, "dtype", "")).removeprefix("torch."),
        "quantization": str(getattr(model, "quantization", "")),
        "tensor_parallel_size": str(getattr(parallel, "tensor_parallel_size", "")),
        "pipeline_parallel_size": str(getattr(parallel, "pipeline_parallel_size", "")),
        "data_parallel_size": str(getattr(parallel, "data_parallel_size", "")),
        "expert_parallel_size": str(ranks),
        "prefix_caching": str(getattr(config.cache_config, "enable_prefix_caching", "")),
        "cudagraph_mode": str(getattr(mode, "name", "")),
    }
    return {key: value for key, value in found.items() if value}


def kernel_name(layers: Sequence[Layer]) -> str:
    """The choice that a layer's method keeps as `unquantized_backend`, `fp8_backend`, …"""
    from .routers import methods

    for layer in layers[:1]:
        for method in methods(layer.module):
            for value in vars(method).values():
                kind = type(value).__name__.lower()
                if isinstance(value, enum.Enum) and kind.endswith("moebackend"):
                    return str(value.value)
    return ""


def _manager() -> str:
    """The class of the all2all manager; empty where there is none."""
    try:
        from vllm.distributed.parallel_state import get_ep_group

        communicator = get_ep_group().device_communicator
        manager = getattr(communicator, "all2all_manager", None)
    except Exception:  # a version that keeps it elsewhere, or has no such group here
        return ""
    return type(manager).__name__ if manager is not None else ""
