"""Colour goes to a terminal that takes it, and to no other."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support.terminal import said_to_a_terminal

ESCAPE = b"\x1b["
COMMAND = [sys.executable, "-m", "core.cli", "generate", "--count", "3", "--out", "made"]


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
    assert (ESCAPE in said_to_a_terminal(COMMAND, tmp_path, env)) == has_colour
