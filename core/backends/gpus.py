"""Memory of the machine's GPUs, asked of NVIDIA's driver. Without one there are none."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

SLACK_BYTES = 512 << 20  # a driver keeps some for itself
POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Gpu:
    """Bytes."""

    name: str
    used: int
    total: int


def seen() -> list[Gpu]:
    """Every GPU that the driver shows."""
    import pynvml

    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())]
        memory = [pynvml.nvmlDeviceGetMemoryInfo(handle) for handle in handles]
        names = [pynvml.nvmlDeviceGetName(handle) for handle in handles]
    except (pynvml.NVMLError, OSError):
        return []
    return [Gpu(str(n), int(m.used), int(m.total)) for n, m in zip(names, memory, strict=True)]


def wait_free(before: Sequence[Gpu], timeout_s: float = 30.0) -> bool:
    """Wait until no GPU holds much more than it did `before`; whether that was seen in time.

    A process is gone before the driver has taken its memory back, and the next server would find it missing.
    """
    deadline = time.monotonic() + timeout_s
    while before:
        now = seen()
        if all(gpu.used <= then.used + SLACK_BYTES for gpu, then in zip(now, before, strict=False)):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True
