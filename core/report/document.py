"""A report's parts, written as Markdown and as one HTML page that needs no other file."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;display:block;overflow-x:auto}td,th{border:1px solid #bbb;padding:.2rem .6rem;"
    "text-align:left}figure{margin:1rem 0}img{max-width:100%}figcaption{color:#555}"
    "pre{background:#f3f3f3;padding:.6rem;overflow-x:auto}"
)


@dataclass(frozen=True, slots=True)
class Heading:
    text: str
    level: int = 2

    def markdown(self) -> str:
        return f"{'#' * self.level} {_marked(self.text)}"

    def html(self, _: Path) -> str:
        return f"<h{self.level}>{html.escape(self.text)}</h{self.level}>"


@dataclass(frozen=True, slots=True)
class Text:
    text: str

    def markdown(self) -> str:
        return _marked(self.text)

    def html(self, _: Path) -> str:
        return f"<p>{html.escape(self.text)}</p>"


@dataclass(frozen=True, slots=True)
class Items:
    texts: Sequence[str]

    def markdown(self) -> str:
        return "\n".join(f"- {_marked(text)}" for text in self.texts)

    def html(self, _: Path) -> str:
        return "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in self.texts) + "</ul>"


@dataclass(frozen=True, slots=True)
class Table:
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        return "\n".join("| " + " | ".join(map(_marked, line)) + " |" for line in lines)

    def html(self, _: Path) -> str:
        return f"<table>{_cells('th', self.head)}{''.join(_cells('td', row) for row in self.rows)}</table>"


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG, by its path inside the report's folder; `caption` says what to see in it."""

    file: str
    title: str
    caption: str = ""

    def markdown(self) -> str:
        picture = f"![{_marked(self.title)}]({self.file})"
        return f"{picture}\n\n{_marked(self.caption)}" if self.caption else picture

    def html(self, folder: Path) -> str:
        data = base64.b64encode((folder / self.file).read_bytes()).decode()
        below = f"<figcaption>{html.escape(self.caption)}</figcaption>" if self.caption else ""
        return f'<figure><img alt="{html.escape(self.title)}" src="data:image/png;base64,{data}">{below}</figure>'


@dataclass(frozen=True, slots=True)
class Code:
    text: str

    def markdown(self) -> str:
        return "\n".join(f"    {line}" for line in self.text.splitlines())

    def html(self, _: Path) -> str:
        return f"<pre>{html.escape(self.text)}</pre>"


Part = Heading | Text | Items | Table | Picture | Code


def markdown(parts: Sequence[Part]) -> str:
    return "\n\n".join(part.markdown() for part in parts) + "\n"


def page(title: str, parts: Sequence[Part], folder: Path) -> str:
    """One HTML page; pictures of `folder` are embedded. OSError where one cannot be read."""
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
    body = "\n".join(part.html(folder) for part in parts)
    return f"{head}<style>{STYLE}</style></head><body>\n{body}\n</body></html>\n"


def _cells(tag: str, texts: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts) + "</tr>"


def _marked(text: str) -> str:
    """On one line, with what Markdown would take for its own marks escaped."""
    return re.sub(r"([\\`*_<|])", r"\\\1", " ".join(text.split()))
