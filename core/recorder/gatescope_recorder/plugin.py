"""The entry point that vLLM loads in every process. Inert unless GATESCOPE_GATE_LOGS names a
folder.

No file of vLLM is changed. `WorkerWrapperBase.init_device` is wrapped once; when it has run,
methods of that one worker object are wrapped. The worker is wrapped and not its model runner,
because a runner also runs dummy and warm-up batches through the method that real steps use.
"""

from __future__ import annotations

import functools
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .about import About

if TYPE_CHECKING:
    from .order import Order

FOLDER = "GATESCOPE_GATE_LOGS"

log = logging.getLogger("vllm.gatescope_recorder")  # below "vllm": vLLM's own handler shows it


def register() -> None:
    """Called by vLLM, maybe more than once in a process."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return
    try:
        from vllm.v1.worker.worker_base import WorkerWrapperBase
    except Exception as error:
        reason = f"disabled: this vLLM has no V1 worker to hook into: {error}"
        log.error("gatescope recorder: %s", reason)
        About(Path(folder), f"process{os.getpid()}").note(recorder=reason)
        return
    if hasattr(WorkerWrapperBase.init_device, "recorded"):
        return
    init_device = WorkerWrapperBase.init_device

    @functools.wraps(init_device)
    def recorded(self: Any) -> Any:
        result = init_device(self)
        _attach(self, Path(folder))
        return result

    recorded.recorded = True  # type: ignore[attr-defined]  # a mark on a function
    WorkerWrapperBase.init_device = recorded


def _order(folder: Path) -> Order | None:
    """The doses that may be forced; None if the variable is not set or cannot be read."""
    from .order import VARIABLE, Order

    text = os.environ.get(VARIABLE)
    if not text:
        return None
    try:
        return Order.decode(text)
    except (ValueError, KeyError, TypeError) as error:
        reason = f"refused: {VARIABLE} cannot be read: {error}"
        log.error("gatescope forced routing: %s", reason)
        About(folder, f"process{os.getpid()}").note(forced_routing=reason)
        return None


def _attach(wrapper: Any, folder: Path) -> None:
    from .worker import attach

    try:
        attach(wrapper.worker, wrapper.vllm_config, folder, _order(folder))
    except Exception as error:  # the server must start all the same
        reason = "disabled: it could not attach to the worker"
        log.exception("gatescope recorder: %s", reason)
        said = f"{reason}: {type(error).__name__}: {error}"
        About(folder, f"process{os.getpid()}").note(recorder=said)
