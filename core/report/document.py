"""A report as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence


def heading(title: str, level: int = 2) -> str:
    return f"{'#' * level} {text(title)}"


def text(plain: str) -> str:
    """Plain text on one line, with the characters escaped that Markdown would take for its own."""
    return re.sub(r"([\\`*_<|]|&(?=#?\w+;))", r"\\\1", " ".join(plain.split()))


def items(texts: Sequence[str]) -> str:
    return "\n".join(f"- {text(one)}" for one in texts)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [_row(head), _row(["---"] * len(head), plain=False), *map(_row, rows)]
    return "\n".join(lines)


def _row(cells: Sequence[str], *, plain: bool = True) -> str:
    return "| " + " | ".join(text(cell) if plain else cell for cell in cells) + " |"


def picture(file: str, title: str, caption: str = "") -> str:
    """A PNG by its path inside the report's folder; `caption` says what to see in it."""
    image = f"![{text(title)}]({file})"
    return f"{image}\n\n{text(caption)}" if caption else image


def code(lines: str) -> str:
    return f"```\n{lines}\n```"


def markdown(parts: Sequence[str]) -> str:
    return "\n\n".join(parts) + "\n"


def in_columns(rows: Sequence[Sequence[str]]) -> str:
    """A table as plain text: the first two columns to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_line(row, widths) for row in rows)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    left = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
    right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
    return "  ".join([*left, *right]).rstrip()
