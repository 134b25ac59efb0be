"""A report as Markdown, written once, and as one HTML page rendered from it that needs no other
file."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path

STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;display:block;overflow-x:auto}"
    "td,th{border:1px solid #bbb;padding:.2rem .6rem;text-align:left}"
    "img{max-width:100%}pre{background:#f3f3f3;padding:.6rem;overflow-x:auto}"
)


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


def page(title: str, markdown: str, folder: Path) -> str:
    """The HTML page of a report; pictures of `folder` are embedded. OSError if one cannot be
    read."""
    from markdown_it import MarkdownIt

    renderer = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = renderer.parse(markdown)
    for token in tokens:
        for image in (child for child in token.children or [] if child.type == "image"):
            image.attrSet("src", _embedded(folder / str(image.attrGet("src"))))
    body = renderer.renderer.render(tokens, renderer.options, {})
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head>\n<body>\n{body}</body></html>\n'


def _embedded(file: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"


def in_columns(rows: Sequence[Sequence[str]]) -> str:
    """A table as plain text: the first two columns to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_line(row, widths) for row in rows)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    left = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
    right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
    return "  ".join([*left, *right]).rstrip()
