"""A person's session under tmux over the built-in engine: start, detach, attach, cancel, stop;
nothing is left."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from support.watched import edit

PATIENCE_S = 60.0
pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")


class Terminal:
    """A tmux server of its own; one window of 140×45."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.socket = f"gatescope-test-{os.getpid()}"
        # A second session keeps the tmux server up while the first is closed and opened again.
        self.tmux("-f", "/dev/null", "new-session", "-d", "-s", "keep", "exec sleep 600")

    def tmux(self, *words: str) -> str:
        done = subprocess.run(
            ["tmux", "-L", self.socket, *words], capture_output=True, text=True, check=False
        )
        return done.stdout

    def open(self, *words: str) -> None:
        """Run gatescope in a new session; the shell behind it says how it ended."""
        command = " ".join([sys.executable, "-m", "core.cli", *words])
        root = Path(__file__).parents[2]
        where = f"cd {self.place} && unset COLUMNS LINES && export PYTHONPATH={root}"
        script = f"{where} && {command}; echo ended $?; exec sleep 600"
        self.tmux("new-session", "-d", "-s", "t", "-x", "140", "-y", "45", f"sh -c '{script}'")

    def close(self) -> None:
        self.tmux("kill-session", "-t", "t")

    def press(self, *keys: str) -> None:
        self.tmux("send-keys", "-t", "t", *keys)

    @property
    def text(self) -> str:
        return self.tmux("capture-pane", "-p", "-t", "t")

    def until(self, holds: Callable[[str], bool]) -> str:
        deadline = time.monotonic() + PATIENCE_S
        while not holds(text := self.text):
            assert time.monotonic() < deadline, text
            time.sleep(0.1)  # a screen announces no change
        return text


@pytest.fixture
def terminal(experiment: Path) -> Iterator[Terminal]:
    edit(experiment, repeats=20, output_len=900)  # long enough runs for a hand on the keys
    made = Terminal(experiment.parent)
    yield made
    made.tmux("kill-server")
    for process in processes(made.place):
        process.kill()


def processes(place: Path) -> list[psutil.Process]:
    """Every gatescope process that runs in this place."""
    found = []
    for process in psutil.process_iter():
        try:
            if "core." in " ".join(process.cmdline()) and process.cwd().startswith(str(place)):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def test_a_session(terminal: Terminal) -> None:
    terminal.open("--out", "run")
    terminal.until(lambda t: "not started" in t and "120 runs" in t)
    terminal.press("r")
    terminal.until(lambda t: "running in run" in t)
    shown = terminal.until(
        lambda t: any(
            line.strip("│ ").startswith("TTFT ") and "." in line for line in t.splitlines()
        )
    )
    assert "baseline · 00" in shown

    terminal.press("q")
    terminal.until(lambda t: "stop everything" in t)
    terminal.press("d")
    terminal.until(lambda t: "ended 0" in t)
    terminal.close()
    assert processes(terminal.place)  # the engine and its server go on

    terminal.open("attach", "run")
    terminal.until(lambda t: "▶ running" in t and "▶>" in t)
    terminal.press("x")
    terminal.until(lambda t: "esc  back" in t)
    terminal.press("x")
    terminal.until(lambda t: "cancelled" in t and "× " in t)

    terminal.press("q")
    terminal.until(lambda t: "stop everything" in t)
    terminal.press("k")
    terminal.until(lambda t: "ended 0" in t)
    deadline = time.monotonic() + PATIENCE_S
    while left := processes(terminal.place):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)  # a server may take a moment to go


def test_a_lost_terminal_leaves_the_run_going(terminal: Terminal) -> None:
    """And gatescope without a word more finds it."""
    terminal.open()
    terminal.until(lambda t: "not started" in t)
    terminal.press("r")
    terminal.until(lambda t: "running in runs/" in t)
    terminal.close()  # SIGHUP
    terminal.open()
    terminal.until(lambda t: "▶ running" in t)
    terminal.press("q")
    terminal.until(lambda t: "stop everything" in t)
    terminal.press("k")
    terminal.until(lambda t: "ended 0" in t)
