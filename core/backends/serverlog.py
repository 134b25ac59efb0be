"""A server's log, read as it grows: which phase of the start-up it shows, and why a server died."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TAIL_LINES = 20

# vLLM's lines, 0.11 to 0.32, in the order in which a start-up shows them.
PHASES = (
    (re.compile(r"Starting to load model|Loading (safetensors|pt) checkpoint|Loading weights"), "loading weights"),
    (re.compile(r"Using cache directory: .*torch_compile|Start compiling|Dynamo bytecode transform"), "compiling"),
    (re.compile(r"Warming up model for the compilation"), "compiling"),
    (re.compile(r"Capturing (CUDA )?graphs?|CUDA graph(s)? captur|Profiling CUDA graph"), "capturing graphs"),
    (re.compile(r"Graph capturing finished|Warming up"), "warming up"),
    (re.compile(r"init engine \("), "starting the API server"),
)

# A worker's failure comes first; what its parents then say is only the echo of it.
ECHOES = re.compile(
    r"Engine core initialization failed|WorkerProc initialization failed|EngineDeadError|EngineCore encountered|"
    r"Engine process failed to start|Executor failed|CancelledError|BrokenPipeError|ConnectionResetError|SystemExit"
)
PREFIX = re.compile(r"^(?:\([^)]*pid=\d+\)\s*)?(?:(?:ERROR|CRITICAL|WARNING|INFO) [\d-]+ [\d:.,]+ \[[^\]]*\]\s?)?")
EXCEPTION = re.compile(r"^(?:[\w.]+\.)?[A-Z]\w*(?:Error|Exception|Failure|Exit)\b: \S")
KNOWN = (
    re.compile(r"out of memory", re.IGNORECASE),
    re.compile(r"Free memory on device .* is less than desired"),
    re.compile(r"No available memory for the cache blocks"),
    re.compile(r"address already in use", re.IGNORECASE),
    re.compile(r"error: (unrecognized arguments|argument |the following arguments)"),
    re.compile(r"No module named|No such file or directory: .*python"),
    re.compile(r"Cannot find any model weights|is not a local folder and is not a valid model identifier"),
)


@dataclass(slots=True)
class PhaseFollower:
    """Tells of each new start-up phase in a growing log, once."""

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
        whole = data[: max(data.rfind(b"\n"), data.rfind(b"\r")) + 1]  # a progress bar ends its lines with \r
        self.offset += len(whole)
        for line in re.split(r"[\r\n]+", whole.decode(errors="replace")):
            phase = phase_of(line)
            if phase and phase != self.phase:
                self.phase = phase
                yield phase


def phase_of(line: str) -> str:
    """The start-up phase that a log line announces, or nothing."""
    return next((phase for pattern, phase in PHASES if pattern.search(line)), "")


def tail(log: Path, offset: int = 0) -> list[str]:
    """The last lines of the log that were written since `offset`."""
    return list(deque(_lines(log, offset), TAIL_LINES))


def root_cause(log: Path, offset: int = 0) -> str:
    """The line that says why the server died: a known failure, else the first exception that is not an echo of
    another, else the last line. Empty where the log is."""
    first, last = "", ""
    for line in _lines(log, offset):
        text = PREFIX.sub("", line).strip()
        if not text:
            continue
        last = text
        if ECHOES.search(text):
            continue
        if "error" in text.lower() and any(known.search(text) for known in KNOWN):
            return text
        if not first and EXCEPTION.match(text):
            first = text
    return first or last


def _lines(log: Path, offset: int) -> Iterator[str]:
    try:
        with open(log, "rb") as file:
            file.seek(offset)
            for line in file:
                yield line.decode(errors="replace").rstrip("\n")
    except OSError:
        return
