"""Memory of the machine's GPUs, as nvidia-smi tells it. Without one there are none."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

SLACK_MIB = 512  # a driver keeps some for itself
POLL_S = 0.2
QUERY = ["nvidia-smi", "--query-gpu=name,memory.used,memory.total", "--format=csv,noheader,nounits"]


@dataclass(frozen=True, slots=True)
class Gpu:
    """Memory in MiB."""

    name: str
    used: int
    total: int


def seen() -> list[Gpu]:
    """Every GPU that the driver shows."""
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, timeout=10, check=True)
        rows = [line.rsplit(", ", 2) for line in done.stdout.splitlines()]
        return [Gpu(name, int(used), int(total)) for name, used, total in rows]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []


def wait_free(before: Sequence[Gpu], timeout_s: float = 30.0) -> bool:
    """Wait until no GPU holds much more than it did `before`; whether that was seen in time.

    A process is gone before the driver has taken its memory back, and the next server would find it missing.
    """
    deadline = time.monotonic() + timeout_s
    while any(now.used > then.used + SLACK_MIB for now, then in zip(seen(), before, strict=False)):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True
