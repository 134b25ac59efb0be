"""The standard streams, and text for a terminal: nothing printed can move the cursor."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import sys
import textwrap
from typing import TextIO

from core.stats.written import written

ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")

CLEAR = "\r\x1b[K"  # the line that the cursor is in, which may hold a bar
# Colours of a line by its mark, of the terminal's own 16, so that they fit its background.
MARKS = {"✓": "32", "●": "32", "!": "1;31", "×": "33", "↻": "36", "▶": "36"} | dict.fromkeys(
    "~·○", "2"
)
BAR_CELLS, LEAST_BAR = 30, 5

# SIGUSR1: what Slurm is asked to send before the time is up (--signal=B:USR1@120).
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def shown(value: float | None, form: str) -> str:
    """A number, or a dash for None."""
    return "–" if value is None else written(value, form)


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
    """Write lines to stderr: stdout is for data. A closed stderr does not stop the runs."""
    _write(fitted(text) + "\n")


def fitted(text: str) -> str:
    """`text` as a terminal shows it: in place of a bar, its words wrapped, its lines coloured by
    their mark. Unchanged where there is no terminal."""
    if not shows_bars():
        return text
    rows = [row for line in text.split("\n") for row in _rows(line, terminal_columns())]
    return CLEAR + "\n".join(rows)


def _rows(line: str, columns: int) -> list[str]:
    if "\x1b" in line:  # a plot, which fits
        return [line]
    deeper = " " * (len(line) - len(line.lstrip()) + 2)
    fits = len(line) <= columns
    rows = [line] if fits else textwrap.wrap(line, columns, subsequent_indent=deeper)
    colour = MARKS.get(line.lstrip()[:2].rstrip())
    if colour is None or not takes_colour(sys.stderr):
        return rows
    return [f"\x1b[{colour}m{row}\x1b[0m" for row in rows]


def shows_bars() -> bool:
    """Whether a line of stderr can be drawn anew."""
    return sys.stderr.isatty() and not is_dumb()


def bar(head: str, share: float, tail: str) -> None:
    """Draw how far something is, in a line that the next one replaces; nothing off a terminal."""
    if not shows_bars():
        return
    width = terminal_columns() - 1
    percent = f"{share:4.0%}  "
    room = min(BAR_CELLS, width - len(head) - len(percent) - len(tail) - 2)
    full = round(min(share, 1.0) * room)
    drawn = f" {'━' * full}{'╌' * (room - full)}" if room >= LEAST_BAR else ""
    _write(CLEAR + printable(f"{head}{drawn} {percent}{tail}")[:width])


def _write(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, text.encode(errors="replace"))


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
