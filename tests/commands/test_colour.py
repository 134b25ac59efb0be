"""Colour goes to a terminal that takes it, and to no other."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

ESCAPE = b"\x1b["
COMMAND = [sys.executable, "-m", "core.cli", "generate", "--count", "3", "--out", "made"]


def said_to_a_terminal(folder: Path, **env: str) -> bytes:
    """All that `gatescope generate`, which draws a histogram, writes to a terminal."""
    ours, theirs = pty.openpty()
    clean = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TERM")}
    process = subprocess.Popen(
        COMMAND, cwd=folder, stdout=theirs, stderr=theirs, stdin=theirs, env={**clean, **env}
    )
    os.close(theirs)
    said = b""
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # Linux's end of file of a terminal
            break
        if not part:
            break
        said += part
    os.close(ours)
    assert process.wait() == 0, said
    return said


@pytest.mark.parametrize(
    ("env", "has_colour"),
    [
        ({"TERM": "xterm-256color"}, True),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, False),
        ({"TERM": "xterm-256color", "NO_COLOR": ""}, True),
        ({"TERM": "dumb"}, False),
    ],
)
def test_a_terminal_gets_colour_where_it_and_its_user_take_it(
    tmp_path: Path, env: dict[str, str], has_colour: bool
) -> None:
    assert (ESCAPE in said_to_a_terminal(tmp_path, **env)) == has_colour
