"""Reading: a screen of paragraphs, read off the UI thread, wrapped and scrolled; `y` copies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.widget import Widget

from core.errors import GatescopeError
from tui.draw.text import Line, Span, fit, line, wrapped
from tui.screens.page import Page
from tui.widgets.lines import Lines


class Reading(Page):
    """`read` gives the paragraphs; `copied` is what `y` copies, else all that is read."""

    HINTS: ClassVar[tuple[tuple[str, str], ...]] = (
        ("↑ ↓", "scroll"),
        ("y", "copy"),
        ("esc", "back"),
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,ctrl+c", "dismiss", "back"),
        Binding("y", "copy", "copy"),
        Binding("home,g", "scroll(-1000000000)", "first"),
        Binding("end,G", "scroll(1000000000)", "last"),
    ]

    def __init__(self, title: str, read: Callable[[], Sequence[Span]], copied: str = "") -> None:
        super().__init__()
        self._title, self._read, self._copied = title, read, copied
        self.paragraphs: Sequence[Span] = (("reading …", "dim"),)
        self._top = 0
        self._said = ""

    def on_mount(self) -> None:
        super().on_mount()
        self.read_again()

    def read_again(self) -> None:
        self.run_worker(self._look, thread=True)

    def _look(self) -> None:
        try:
            found = self._read()
        except (OSError, GatescopeError) as error:
            found = [(str(error), "bad")]
        self.app.call_from_thread(self._looked, found)

    def _looked(self, found: Sequence[Span]) -> None:
        self.paragraphs = found
        self.show()

    def above(self) -> Iterable[Widget]:
        yield Lines("header")

    def below(self) -> Iterable[Widget]:
        yield Lines("message")

    def draw(self) -> None:
        width, height = self.body.size
        self.query_one("#header", Lines).put([line((fit(f" {self._title}", width), "strong"))])
        rows = self._rows(width)
        self._top = max(0, min(self._top, len(rows) - height))
        self.body.put(rows[self._top : self._top + height])
        last = self._top + height
        place = f"rows {self._top + 1:,} to {last:,} of {len(rows):,}" if len(rows) > height else ""
        self.query_one("#message", Lines).put([line((f" {self._said or place}", "note"))])

    def _rows(self, width: int) -> list[Line]:
        return [
            line((f" {row}", role))
            for text, role in self.paragraphs
            for row in wrapped(text, width - 2, "  ")
        ]

    def action_scroll(self, by: int) -> None:
        self._top = max(0, self._top + by)
        self.show()

    def action_copy(self) -> None:
        text = self._copied or "\n".join(text for text, _ in self.paragraphs)
        self.app.copy_to_clipboard(text)
        self._said = f"copied: {self._copied or f'{len(self.paragraphs)} lines'}"
        self.show()
