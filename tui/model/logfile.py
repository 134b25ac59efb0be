"""The end of a log file: its lines by severity, cut or wrapped into rows."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal, NamedTuple

from rich.cells import cell_len, chop_cells

from core.terminal import plain

TAIL_BYTES = 1 << 20
Level = Literal["all", "warnings", "errors"]
LEVELS: tuple[Level, ...] = ("all", "warnings", "errors")
ERROR = re.compile(r"\b(?:ERROR|CRITICAL|FATAL|[Ff]atal|Traceback)\b|\w(?:Error|Exception)\b")
WARNING = re.compile(r"\bWARN(?:ING)?\b|\w?Warning\b")


class LogLine(NamedTuple):
    """`severity`: 2 of an error, 1 of a warning, else 0."""

    text: str
    severity: int


def read(file: Path) -> list[LogLine]:
    """The last megabyte, line by line; an indented line has the severity of the line above it."""
    lines: list[LogLine] = []
    for text in tail(file):
        own = 2 if ERROR.search(text) else 1 if WARNING.search(text) else 0
        is_more = text[:1].isspace() and lines
        lines.append(LogLine(text, max(own, lines[-1].severity if is_more else 0)))
    return lines


def tail(file: Path, size: int = TAIL_BYTES) -> list[str]:
    """The lines in the last `size` bytes of a file; a carriage return ends a line too (progress
    bars)."""
    with open(file, "rb") as opened:
        opened.seek(max(0, os.fstat(opened.fileno()).st_size - size))
        text = opened.read().decode(errors="replace")
    rows = [
        row.rsplit("\r", 1)[-1] for row in plain(text).rstrip().replace("\r\n", "\n").split("\n")
    ]
    return rows[1:] if len(text) >= size else rows


def of_level(lines: list[LogLine], level: Level) -> list[LogLine]:
    """The lines of that severity or worse."""
    return [one for one in lines if one.severity >= LEVELS.index(level)]


def rows(text: str, width: int) -> list[str]:
    """A line in rows of `width` cells."""
    return [text] if cell_len(text) <= width else chop_cells(text, max(width, 2))
