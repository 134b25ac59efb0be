"""Page: a screen of rows over the panes, redrawn on a timer and on resize, with its keys below."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widget import Widget

from tui.widgets import bars
from tui.widgets.lines import Lines


class Page(Screen[None]):
    """A subclass draws the `body`, and scrolls it. `above` and `below`: its other widgets."""

    AUTO_FOCUS: ClassVar[str | None] = ""  # else a closed prompt gets the keys
    EVERY_S: ClassVar[float] = 1.0
    HINTS: ClassVar[tuple[tuple[str, str], ...]]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "scroll(-1)", "up"),
        Binding("down,j", "scroll(1)", "down"),
        Binding("pageup", "page(-1)", "page up"),
        Binding("pagedown", "page(1)", "page down"),
    ]

    def above(self) -> Iterable[Widget]:
        raise NotImplementedError

    def below(self) -> Iterable[Widget]:
        raise NotImplementedError

    def draw(self) -> None:
        """Put what is known now."""
        raise NotImplementedError

    def action_scroll(self, by: int) -> None:
        raise NotImplementedError

    def compose(self) -> ComposeResult:
        yield from self.above()
        yield Lines("page")
        yield from self.below()
        yield Lines("keys")

    @property
    def body(self) -> Lines:
        return self.query_one("#page", Lines)

    def on_mount(self) -> None:
        self.set_interval(self.EVERY_S, self.show)
        self.call_after_refresh(self.show)

    def on_resize(self) -> None:
        self.call_after_refresh(self.show)

    def show(self) -> None:
        self.draw()
        self.query_one("#keys", Lines).put([bars.keys(self.HINTS)])

    def action_page(self, by: int) -> None:
        self.action_scroll(by * max(1, self.body.size.height - 1))
