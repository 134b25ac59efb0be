"""Memory of the machine's GPUs, as nvidia-smi tells it. Without one there are none."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

SLACK_MIB = 512  # a driver keeps some for itself
POLL_S = 0.2
QUERY = "--query-gpu=name,memory.used,memory.total"
HOLDERS = "--query-compute-apps=pid,process_name,used_memory"


@dataclass(frozen=True, slots=True)
class Gpu:
    """Memory in MiB."""

    name: str
    used: int
    total: int


def seen() -> list[Gpu]:
    """Every GPU that the driver shows."""
    try:
        rows = [line.rsplit(", ", 2) for line in _ask(QUERY)]
        return [Gpu(name, int(used), int(total)) for name, used, total in rows]
    except ValueError:
        return []


def wait_free(before: Sequence[Gpu], timeout_s: float = 30.0) -> list[str]:
    """Wait until no GPU holds much more than it did `before`; of each that still does then, a
    sentence with who has it.

    A process is gone before the driver has taken its memory back, and the next server would find it
    missing.
    """
    deadline = time.monotonic() + timeout_s
    while held := _held(before):
        if time.monotonic() > deadline:
            who = ", ".join(_holders()) or "no process that nvidia-smi shows"
            return [f"{sentence}; memory is held by {who}" for sentence in held]
        time.sleep(POLL_S)
    return []


def _held(before: Sequence[Gpu]) -> list[str]:
    if len(now := seen()) < len(before):
        return [
            f"nvidia-smi shows {len(now)} GPUs of {len(before)} that were there before the server started"
        ]
    more = [gpu.used - then.used for gpu, then in zip(now, before, strict=False)]
    return [
        f"GPU {index} still holds {mib} MiB more than before the server started"
        for index, mib in enumerate(more)
        if mib > SLACK_MIB
    ]


def _holders() -> list[str]:
    """Every process that holds memory of a GPU."""
    rows = [line.split(", ") for line in _ask(HOLDERS)]
    return [
        f"process {pid} ({', '.join(name)}, {mib} MiB)"
        for pid, *name, mib in (row for row in rows if len(row) > 2)
    ]


def _ask(query: str) -> list[str]:
    try:
        command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return []
