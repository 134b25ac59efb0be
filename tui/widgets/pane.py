"""Pane: a bordered part of the screen that draws a View as lines and holds a cursor."""

from __future__ import annotations

from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message

from tui.draw.text import Line, line, safe
from tui.model.view import View
from tui.widgets.lines import Lines


class Pane(Lines, can_focus=True):
    """A subclass defines what it shows (`draw`) and how many items its cursor can stand on
    (`count`)."""

    NUMBER: ClassVar[int]
    NAME: ClassVar[str]
    KEYS: ClassVar[str] = ""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "up", tooltip="Move the cursor of the pane in focus up"),
        Binding("down,j", "move(1)", "down", tooltip="Move the cursor of the pane in focus down"),
        Binding("pageup", "page(-1)", "page up", tooltip="Move the cursor up by a page"),
        Binding("pagedown", "page(1)", "page down", tooltip="Move the cursor down by a page"),
        Binding(
            "home,g", "move(-1000000000)", "first", tooltip="Move the cursor to the first line"
        ),
        Binding("end,G", "move(1000000000)", "last", tooltip="Move the cursor to the last line"),
    ]

    class Selected(Message):
        """The cursor went to a run: every pane shows that one."""

        def __init__(self, run: str) -> None:
            super().__init__()
            self.run = run

    def __init__(self) -> None:
        super().__init__(id=self.NAME.lower())
        self.view = View()
        self.at = 0
        self._top = 0
        self._titles = ("", "")

    def draw(self, width: int, height: int) -> list[Line]:
        """At most `height` lines of `width` cells."""
        raise NotImplementedError

    def title(self) -> str:
        """The text beside the name on the upper border."""
        return ""

    def keys(self) -> str:
        """Its own keys, shown on the lower border."""
        return self.KEYS

    def count(self) -> int:
        return 0

    def listed(self) -> list[str]:
        """Ids of the runs that the cursor goes through; none if it goes through something else."""
        return []

    def show(self, view: View) -> None:
        """Take the next view, with the cursor on the run shown; a hidden pane does not draw."""
        self.view = view
        if self.is_on_screen:
            runs = self.listed()
            self.at = runs.index(view.shown) if view.shown in runs else self.at
            self.redraw()

    def redraw(self) -> None:
        """Draw again, if there is room by now: a pane just gone to may be still hidden."""
        self.at = max(0, min(self.at, self.count() - 1))
        if self.is_on_screen:
            self.put(self.draw(*self.size))
            self._set_titles()

    @property
    def is_on_screen(self) -> bool:
        return bool(self.display and self.size)

    def window(self, rows: int) -> range:
        """The items that `rows` rows show, scrolled as little as keeps the cursor among them."""
        count = self.count()
        self._top = max(min(self._top, self.at, count - rows), self.at - rows + 1, 0)
        return range(self._top, min(self._top + max(rows, 0), count))

    def is_cursor(self, item: int) -> bool:
        return item == self.at and self.has_focus

    # --- keys and mouse ---

    def action_move(self, by: int) -> None:
        self.at = max(0, min(self.at + by, self.count() - 1))
        if runs := self.listed():
            self.post_message(self.Selected(runs[self.at]))
        self.redraw()

    def on_click(self, event: events.Click) -> None:
        """The cursor goes to the row clicked on, where rows are items."""
        place = event.get_content_offset(self)
        item = None if place is None else self.item_at(place.y)
        if item is not None:
            self.action_move(item - self.at)

    def item_at(self, row: int) -> int | None:
        """The item drawn in a row of the pane; None where there is none."""
        return None

    def action_page(self, by: int) -> None:
        self.action_move(by * max(1, self.size.height - 3))

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.action_move(1)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self.action_move(-1)

    # --- life ---

    def on_resize(self) -> None:
        self.redraw()

    def on_focus(self) -> None:
        self.redraw()

    def on_blur(self) -> None:
        self.redraw()

    def _set_titles(self) -> None:
        name = f"[{self.NUMBER} {self.NAME}]" if self.has_focus else f" {self.NUMBER} {self.NAME} "
        title = safe(self.title())
        titles = (f"{name} {title} " if title else name, self.keys() if self.has_focus else "")
        if titles != self._titles:
            self._titles = titles
            self.border_title = Content(titles[0])
            self.border_subtitle = Content(titles[1])


def empty(*texts: str) -> list[Line]:
    """An empty state: what is missing, and the key that brings it."""
    return [Line(), *(line(("  " + text, "dim")) for text in texts)]
