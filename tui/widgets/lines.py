"""Lines: a widget that shows rows of spans and repaints only those that changed. Nothing unsafe
gets through."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from tui.draw.text import Line, safe
from tui.draw.theme import roles

CURSOR = Style(reverse=True)


class Lines(Widget):
    """Shows the lines last put."""

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self._lines: list[Line] = []
        self._shown_at = (0, 0)  # the size at which they were drawn

    def put(self, lines: Sequence[Line]) -> None:
        """Show these, and nothing below them; unchanged lines are not repainted."""
        width, height = self.size
        fresh = list(lines[:height])
        fresh += [Line()] * (height - len(fresh))
        if self._shown_at != (width, height):
            self._shown_at, self._lines = (width, height), []
        changed = [y for y in range(height) if y >= len(self._lines) or fresh[y] != self._lines[y]]
        self._lines = fresh
        if changed:
            self.refresh(*(Region(0, y, width, 1) for y in changed))

    def span_at(self, x: int, y: int) -> int | None:
        """Place of the span in that cell; None where there is none."""
        spans = self._lines[y].spans if y < len(self._lines) else ()
        ends = itertools.accumulate(cell_len(text) for text, _ in spans)
        return next((place for place, end in enumerate(ends) if x < end), None)

    @property
    def plain(self) -> str:
        """The text on screen."""
        return "\n".join(text.plain.rstrip() for text in self._lines)

    def render_line(self, y: int) -> Strip:
        text = self._lines[y] if y < len(self._lines) else Line()
        base = self.visual_style.rich_style
        styles = roles(self.app.theme)
        segments, used = [], 0
        for part, role in text.spans:
            shown = safe(part)
            own = role if isinstance(role, Style) else styles[role]
            # The cursor's row has one background, so one colour of text.
            segments.append(Segment(shown, base if text.cursor else base + own))
            used += cell_len(shown)
        strip = Strip(segments, used).adjust_cell_length(self.size.width, base)
        return strip.apply_style(CURSOR) if text.cursor else strip
