"""Text as panes build it: lines of (text, role) spans, cut to cells, and made safe for the
terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.style import Style

Role = str | Style
Span = tuple[str, Role]

NONE = "–"
BARS = "▁▂▃▄▅▆▇█"
# CSI, OSC and other string sequences (with their text), then two-byte escapes.
ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b."
)


class Line(NamedTuple):
    """One row of a pane; `cursor` marks it across its whole width."""

    spans: tuple[Span, ...] = ()
    cursor: bool = False

    @property
    def plain(self) -> str:
        return "".join(text for text, _ in self.spans)


def line(*parts: str | Span, cursor: bool = False) -> Line:
    return Line(tuple((p, "") if isinstance(p, str) else p for p in parts), cursor)


def safe(text: str) -> str:
    """`text` without what could move the cursor or change the terminal; line ends and tabs become
    spaces."""
    if text.isprintable():
        return text
    text = ESCAPES.sub("", text).translate({9: " ", 10: " ", 13: " "})
    return "".join(c for c in text if c.isprintable())


def fit(text: str, width: int, *, right: bool = False) -> str:
    """Exactly `width` cells: padded, or cut with an ellipsis."""
    text = safe(text)
    size = cell_len(text)
    if size > width:
        return set_cell_size(text, width - 1) + "…" if width > 1 else "…"[:width]
    return " " * (width - size) + text if right else text + " " * (width - size)


def cut(text: str, width: int) -> str:
    """`text` in at most `width` cells, shortened in the middle: long names differ at their ends."""
    text = safe(text)
    if cell_len(text) <= width or width < 3:
        return fit(text, width).rstrip()
    head = (width - 1) // 2
    tail = text[-(width - 1 - head) :]
    return f"{fit(text, head + 1)[:head]}…{tail}"


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """`text` in rows of at most `width` cells, broken at spaces if it has them."""
    import textwrap

    return textwrap.wrap(
        safe(text), max(width, 8), subsequent_indent=indent, break_long_words=True
    ) or [""]


def beside(left: Sequence[Line], right: Sequence[Line], width: int) -> list[Line]:
    """Two columns of lines; the left one is padded to `width` cells."""
    rows = []
    for place in range(max(len(left), len(right))):
        one = left[place] if place < len(left) else Line()
        other = right[place] if place < len(right) else Line()
        gap = width - sum(cell_len(text) for text, _ in one.spans)
        rows.append(Line((*one.spans, (" " * max(gap, 0), ""), *other.spans)))
    return rows


def number(value: float | None, digits: int = 0) -> str:
    """`3,412`, `13.9`, or a dash for None."""
    return NONE if value is None else f"{value:,.{digits}f}"


def runs(count: int) -> str:
    """`1 run`, `2 runs`."""
    return "1 run" if count == 1 else f"{count:,} runs"


def clock(seconds: float) -> str:
    """`03:07`, or `1:03:07` from one hour."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


def kept(parts: Sequence[tuple[int, Span]], width: int) -> Line:
    """As many (need, span) as fit into `width` cells, in their order; the least needed go
    first."""
    left = list(parts)
    while len(left) > 1 and sum(cell_len(text) for _, (text, _) in left) > width:
        left.remove(min(reversed(left), key=lambda part: part[0]))
    return Line(tuple(span for _, span in left))


def bar(share: float, width: int) -> str:
    """A progress bar of `width` cells."""
    full = round(min(max(share, 0.0), 1.0) * width)
    return "█" * full + "░" * (width - full)
