"""`gatescope --resume RUN_DIR` opens the terminal UI on a terminal, as `gatescope` does; without
one it is a batch."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shutil
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from support.staged import RECORDED

from core import cli

PATIENCE_S = 60.0
GATESCOPE = (sys.executable, "-P", "-m", "core.cli")


def on_a_terminal(place: Path, *arguments: str, until: str, keys: str) -> tuple[int, str]:
    """Run gatescope on a pseudo-terminal of 140 by 45; once it shows `until`, press `keys`. Its
    exit code, and all that it wrote."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 45, 140, 0, 0))
    env = {**os.environ, "TERM": "xterm-256color"}
    env.pop("COLUMNS", None)
    env.pop("LINES", None)
    process = subprocess.Popen(
        [*GATESCOPE, *arguments],
        cwd=place,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=env,
        start_new_session=True,
    )
    os.close(theirs)
    said, pressed = b"", False
    deadline = time.monotonic() + PATIENCE_S
    try:
        while time.monotonic() < deadline and process.poll() is None:
            if not select.select([ours], [], [], 0.1)[0]:
                continue
            try:
                said += os.read(ours, 1 << 16)
            except OSError:  # Linux: the other end is closed
                break
            if not pressed and until in said.decode(errors="replace"):
                os.write(ours, keys.encode())
                pressed = True
        return process.wait(10), said.decode(errors="replace")
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_on_a_terminal_it_opens_the_ui(tmp_path: Path) -> None:
    shutil.copytree(RECORDED / "demo", tmp_path / "run")
    code, said = on_a_terminal(tmp_path, "--resume", "run", until="finished", keys="q")
    assert code == 0, said
    assert "\x1b[?1049h" in said  # the alternate screen
    assert "resuming" not in said


def test_without_a_terminal_it_is_a_batch(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    done = subprocess.run(
        [*GATESCOPE, "--resume", "run"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "run: not a run directory: run.json and events.jsonl are expected" in done.stderr


@pytest.mark.parametrize("extra", [["--only", "001"], ["--out", "x"], ["--dose", "0.5"]])
def test_it_takes_no_selection(
    extra: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--resume", str(tmp_path), *extra]) == 2
    assert "--resume runs what was selected at the start" in capsys.readouterr().err
