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
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .about import About
from .limits import VARIABLE, Limits

if TYPE_CHECKING:
    from .order import Order

FOLDER = "GATESCOPE_GATE_LOGS"

log = logging.getLogger("vllm.gatescope_recorder")  # below "vllm": vLLM's own handler shows it


def register() -> None:
    """Called by vLLM, maybe more than once in a process."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return
    limits = _limits()
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
        _attach(self, Path(folder), limits)
        return result

    recorded.recorded = True  # type: ignore[attr-defined]  # a mark on a function
    WorkerWrapperBase.init_device = recorded


def _limits() -> Limits:
    """Of `gatescope record`, whose command's output is its own: there only what goes wrong is said,
    on stderr."""
    text = os.environ.get(VARIABLE)
    if not text:
        return Limits()
    if not log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setLevel(logging.ERROR)
        log.addHandler(handler)
        log.propagate = False
    try:
        return Limits.decode(text)
    except (ValueError, TypeError) as error:
        log.error("gatescope recorder: %s cannot be read: %s", VARIABLE, error)
        return Limits()


def _order(folder: Path) -> Order | None:
    """The doses that may be forced; None if the variable is not set or cannot be read."""
    from .order import VARIABLE as ORDER
    from .order import Order

    text = os.environ.get(ORDER)
    if not text:
        return None
    try:
        return Order.decode(text)
    except (ValueError, KeyError, TypeError) as error:
        reason = f"refused: {ORDER} cannot be read: {error}"
        log.error("gatescope forced routing: %s", reason)
        About(folder, f"process{os.getpid()}").note(forced_routing=reason)
        return None


def _attach(wrapper: Any, folder: Path, limits: Limits) -> None:
    from .worker import attach

    try:
        attach(wrapper.worker, wrapper.vllm_config, folder, _order(folder), limits)
    except Exception as error:  # the server must start all the same
        reason = "disabled: it could not attach to the worker"
        log.exception("gatescope recorder: %s", reason)
        said = f"{reason}: {type(error).__name__}: {error}"
        About(folder, f"process{os.getpid()}").note(recorder=said)
