"""Starts the engine as a process that outlives the terminal: `gatescope --batch` in a session of
its own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from core.errors import FileError, GatescopeError
from core.experiment import config, control
from core.experiment.invocation import Invocation
from core.rundir import directory

START_S = 30.0
POLL_S = 0.05
LOG = "engine.log"
MARK = "gatescope: "  # before each line of an error, see core.terminal.complain


def start(invocation: Invocation, is_up: Callable[[Path], bool] = control.is_live) -> Path:
    """Start `invocation`; the run directory, once the engine `is_up` there, by default once it
    listens. GatescopeError with the engine's last line if it does not start."""
    run_dir = invocation.resume or invocation.out or _new_path(invocation)
    if not invocation.resume:
        invocation = replace(invocation, out=run_dir)
    said = run_dir.with_name(f".{run_dir.name}.log")  # beside it: --out must be new or empty
    try:
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        process = _engine(invocation, said)
    except OSError as error:
        raise FileError(f"{run_dir}: cannot be written: {error.strerror}") from None
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if is_up(run_dir) or process.poll() in (0, 1):
            said.replace(run_dir / LOG)  # the engine goes on writing to it
            return run_dir
        if process.poll() is not None:
            break
        if control.DEAF in said.read_text(errors="replace"):
            process.terminate()
            process.wait()
            said.replace(run_dir / LOG)
            raise GatescopeError(
                f"{run_dir}: {control.DEAF}, over which the terminal UI speaks to its engine; use"
                " --batch, or --out on another file system"
            )
        time.sleep(POLL_S)
    lines = said.read_text(errors="replace").strip().splitlines() or ["it wrote nothing"]
    said.unlink()
    errors = [line.removeprefix(MARK) for line in lines if line.startswith(MARK)]
    raise GatescopeError("\n".join(errors or lines[-1:]))


def _new_path(invocation: Invocation) -> Path:
    return directory.new_path(config.load(invocation.config_path).experiment.name)


def _engine(invocation: Invocation, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "core.cli", "--batch", *invocation.arguments()]
    with open(log, "wb") as stderr:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
