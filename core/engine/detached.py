"""Starts the engine as a process that outlives the terminal: `gatescope --batch` in a session of
its own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from core.errors import GatescopeError
from core.experiment import config, control
from core.experiment.dose import Pattern
from core.rundir import directory

START_S = 30.0
POLL_S = 0.05
LOG = "engine.log"


def start(
    config_path: Path,
    *,
    out: Path | None = None,
    only: Sequence[str] = (),
    backends: Sequence[str] = (),
    engine: str | None = None,
    levels: Sequence[float] = (),
    patterns: Sequence[Pattern] = (),
    resume: Path | None = None,
    retry_cancelled: bool = False,
) -> Path:
    """The run directory, once the engine listens there. GatescopeError with what the engine said if
    it does not start."""
    run_dir = resume or out or directory.new_path(config.load(config_path).experiment.name)
    command = [sys.executable, "-P", "-m", "core.cli", "--batch", "--config", str(config_path)]
    chosen = [*_selection(only, backends, engine), *_doses(levels, patterns)]
    command += ["--resume", str(resume)] if resume else ["--out", str(run_dir), *chosen]
    command += ["--retry-cancelled"] * retry_cancelled
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    said = run_dir.with_name(f".{run_dir.name}.log")  # beside it: --out must be new or empty
    with open(said, "wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if control.is_live(run_dir) or process.poll() in (0, 1):
            said.replace(run_dir / LOG)  # the engine goes on writing to it
            return run_dir
        if process.poll() is not None:
            break
        time.sleep(POLL_S)
    lines = said.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
    said.unlink()
    raise GatescopeError(lines[-1].removeprefix("gatescope: "))


def _selection(only: Sequence[str], backends: Sequence[str], engine: str | None) -> list[str]:
    return [
        *(("--only", ",".join(only)) if only else ()),
        *(("--backend", ",".join(backends)) if backends else ()),
        *(("--engine", engine) if engine else ()),
    ]


def _doses(levels: Sequence[float], patterns: Sequence[Pattern]) -> list[str]:
    return [
        *(("--dose", ",".join(map(str, levels))) if levels else ()),
        *(("--pattern", ",".join(patterns)) if patterns else ()),
    ]
