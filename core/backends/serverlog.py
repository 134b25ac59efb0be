"""A server's log, read as it grows, and which phase of the start-up it shows."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from core.terminal import plain

TAIL_LINES = 20

# vLLM's lines, 0.11 to 0.32, in the order in which a start-up shows them.
PHASES = (
    (
        re.compile(r"Starting to load model|Loading (safetensors|pt) checkpoint|Loading weights"),
        "loading weights",
    ),
    (
        re.compile(
            r"Using cache directory: .*torch_compile|Start compiling|Dynamo bytecode transform"
        ),
        "compiling",
    ),
    (re.compile(r"Warming up model for the compilation"), "compiling"),
    (
        re.compile(r"Capturing (CUDA )?graphs?|CUDA graph(s)? captur|Profiling CUDA graph"),
        "capturing graphs",
    ),
    (re.compile(r"Graph capturing finished|Warming up"), "warming up"),
    (re.compile(r"init engine \("), "starting the API server"),
)


@dataclass(slots=True)
class PhaseFollower:
    """Finds each new start-up phase in a growing log, once."""

    log: Path
    offset: int = 0
    phase: str = ""

    def read(self) -> Iterator[str]:
        """The phases that began since the last read."""
        try:
            with open(self.log, "rb") as file:
                file.seek(self.offset)
                data = file.read()
        except OSError:  # a log that cannot be read back (a terminal) shows no phases
            return
        end = max(data.rfind(b"\n"), data.rfind(b"\r"))  # a progress bar ends its lines with \r
        whole = data[: end + 1]
        self.offset += len(whole)
        for line in re.split(r"[\r\n]+", plain(whole.decode(errors="replace"))):
            phase = phase_of(line)
            if phase and phase != self.phase:
                self.phase = phase
                yield phase


def phase_of(line: str) -> str:
    """The start-up phase that a log line announces, or nothing."""
    return next((phase for pattern, phase in PHASES if pattern.search(line)), "")


def tail(log: Path, offset: int = 0) -> list[str]:
    """The last lines of the log that were written since `offset`."""
    return list(deque(lines(log, offset), TAIL_LINES))


def lines(log: Path, offset: int = 0) -> Iterator[str]:
    """Every line that was written since `offset`, as a terminal would end up showing it: without
    colours, and of a progress bar its last state. None where the log cannot be read."""
    try:
        with open(log, "rb") as file:
            file.seek(offset)
            for line in file:
                yield shown(line.decode(errors="replace"))
    except OSError:
        return


def shown(line: str) -> str:
    """One line of a log without its end, its colours, and what a progress bar has overwritten."""
    return plain(line).rstrip("\r\n").rpartition("\r")[2]
