"""A vLLM plugin that logs the router as it is usually done by hand: the peer of our recorder.

In every layer of every step it counts expert by expert and copies the counts to the host. Every 50
steps it writes that layer's whole history as JSON. The upstream scripts did the same. It works in
eager mode only: with CUDA graphs, Python would run once, at capture.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

FOLDER = "NAIVE_GATE_LOGS"
STEPS_PER_WRITE = 50


def register() -> None:
    """vLLM's entry point for plugins, called in every process."""
    if not (folder := os.environ.get(FOLDER)):
        return
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    init_device = WorkerWrapperBase.init_device

    @functools.wraps(init_device)
    def logged(self: Any) -> Any:
        result = init_device(self)
        load_model = self.worker.load_model

        def load_and_tap(*args: Any, **kwargs: Any) -> Any:
            loaded = load_model(*args, **kwargs)
            _tap(self.worker.get_model(), Path(folder) / str(os.getpid()))
            return loaded

        self.worker.load_model = load_and_tap
        return result

    WorkerWrapperBase.init_device = logged


def _tap(model: Any, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    routers = [
        m.router for m in model.modules() if hasattr(getattr(m, "router", None), "set_capture_fn")
    ]
    for layer, router in enumerate(dict.fromkeys(routers)):
        router.set_capture_fn(
            _log(folder / f"gate_logs_{layer}.json", int(router.global_num_experts))
        )


def _log(path: Path, experts: int) -> Callable[[torch.Tensor], None]:
    history: dict[str, list[Any]] = {"step": [], "num_tokens": [], "expert_loads": []}

    def log(ids: torch.Tensor) -> None:
        loads = torch.zeros(experts, device=ids.device)
        for expert in range(experts):
            loads[expert] = (ids == expert).sum()
        history["step"].append(len(history["step"]))
        history["num_tokens"].append(ids.shape[0])
        history["expert_loads"].append(loads.cpu().tolist())
        if len(history["step"]) % STEPS_PER_WRITE == 0:
            path.write_text(json.dumps(history, indent=2))

    return log
