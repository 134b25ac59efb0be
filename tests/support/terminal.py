"""A command in a terminal of its own, and all that it writes there."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path


def said_to_a_terminal(
    command: Sequence[str], folder: Path, env: Mapping[str, str], columns: int = 100
) -> bytes:
    """What a command that ends well writes to a terminal so wide."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    clean = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TERM")}
    process = subprocess.Popen(
        command, cwd=folder, stdout=theirs, stderr=theirs, stdin=theirs, env={**clean, **env}
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
