"""What is printed for a person: on stderr, without what could move a cursor."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys

from core.errors import BAD_USAGE


def shown(value: float | None, form: str) -> str:
    """A number, or the dash that stands for none."""
    return "–" if value is None else format(value, form)


def printable(text: str) -> str:
    """`text` without what could move a cursor or change a terminal: servers, models and file names
    are not trusted."""
    return "".join(
        c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}"
        for c in text.expandtabs(4)
    )


def clock(seconds: float) -> str:
    """`3:07`, from an hour on `1:03:07`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def terminal_columns() -> int:
    return shutil.get_terminal_size((100, 24)).columns


def tell(text: str) -> None:
    """The talk goes to stderr; stdout is for data. A closed stderr does not stop the runs."""
    with contextlib.suppress(OSError):
        os.write(2, (text + "\n").encode(errors="replace"))


def refuse(message: str) -> int:
    complain(message)
    return BAD_USAGE


def complain(message: str) -> None:
    """What is wrong may quote a server, a file or a dataset: none of them moves the cursor."""
    from core.terminal import printable

    print(f"gatescope: {printable(message)}", file=sys.stderr)
