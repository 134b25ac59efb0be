"""The standard streams, and text for a terminal: nothing printed can move the cursor."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import sys
from typing import TextIO

ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")

# SIGUSR1: what Slurm is asked to send before the time is up (--signal=B:USR1@120).
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def shown(value: float | None, form: str) -> str:
    """A number, or a dash for None."""
    return "–" if value is None else format(value, form)


def printable(text: str) -> str:
    """`text` without characters that could move the cursor or change the terminal: servers, models
    and file names are not trusted."""
    return "".join(
        c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}"
        for c in text.expandtabs(4)
    )


def plain(text: str) -> str:
    """`text` without the escape sequences that colour it (or do anything else)."""
    return ESCAPES.sub("", text)


def clock(seconds: float) -> str:
    """`3:07`; from one hour on, `1:03:07`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def size() -> tuple[int, int]:
    """Columns and rows of the terminal that we write to; where there is none, as COLUMNS and LINES
    say. A parent's (tmux, a notebook, a script) may be those of another terminal."""
    for number in (2, 1):
        with contextlib.suppress(OSError):
            columns, rows = os.get_terminal_size(number)
            if columns and rows:  # a serial line knows neither
                return columns, rows
    return shutil.get_terminal_size((100, 24))


def terminal_columns() -> int:
    return size()[0]


def is_dumb() -> bool:
    """Whether the terminal says that it can neither colour nor move its cursor."""
    return os.environ.get("TERM", "") == "dumb"


def takes_colour(stream: TextIO) -> bool:
    """Whether to colour what goes to `stream`: a terminal that can, whose user did not refuse
    (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and not is_dumb()


def has_screen() -> bool:
    """Whether someone could use a full-screen UI here: keys come in, and stderr is shown."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def ending() -> list[signal.Signals]:
    """The signals that end us. One that we were started to ignore (by nohup, or by `&` in a script)
    stays ignored: whoever started us wants us to outlive it."""
    return [number for number in ENDING if signal.getsignal(number) != signal.SIG_IGN]


def tell(text: str) -> None:
    """Write a line to stderr: stdout is for data. A closed stderr does not stop the runs."""
    with contextlib.suppress(OSError):
        os.write(2, (text + "\n").encode(errors="replace"))


def complain(message: str) -> None:
    """Print an error on stderr, each of its lines marked. It may quote a server, a file or a
    dataset: none of them moves the cursor."""
    for line in message.splitlines():
        print(f"gatescope: {printable(line)}", file=sys.stderr)


def open_standard_streams() -> None:
    """Put the null device in place of each standard stream that the caller closed (`2>&-`).
    Otherwise the next file opened would get its number, and messages would go into that file.
    Characters that stdout cannot encode are escaped, not an error."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
