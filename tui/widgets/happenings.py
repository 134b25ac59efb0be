"""Events: what happened, newest last; a cursor on the last line follows new ones."""

from __future__ import annotations

import time
from typing import ClassVar

from tui.draw.text import Line, fit, line
from tui.model.view import Happened, View
from tui.widgets.pane import Pane, empty

ROLES = {"✓": "ok", "!": "bad", "~": "warn", "×": "warn", "↻": "note", "●": "ok"}


class Events(Pane):
    NUMBER = 6
    NAME = "Events"
    KEYS: ClassVar[str] = " / filter  G newest "

    def __init__(self) -> None:
        super().__init__()
        self.filter = ""
        self._follows = True

    def rows(self) -> list[Happened]:
        words = self.filter.lower().split()
        return [h for h in self.view.happened if all(w in h.text.lower() for w in words)]

    def count(self) -> int:
        return len(self.rows())

    def title(self) -> str:
        return f"filter {self.filter!r}: {self.count()} shown" if self.filter else ""

    def show(self, view: View) -> None:
        self.view = view
        if self._follows:
            self.at = max(0, self.count() - 1)
        super().show(view)

    def action_move(self, by: int) -> None:
        super().action_move(by)
        self._follows = self.at >= self.count() - 1

    def narrow(self, words: str) -> None:
        """Show only the events that contain all of these words."""
        self.filter = words
        self.redraw()

    def draw(self, width: int, height: int) -> list[Line]:
        rows = self.rows()
        if not rows:
            return self._empty()[-height:]
        return [event_line(rows[i], width, cursor=self.is_cursor(i)) for i in self.window(height)]

    def _empty(self) -> list[Line]:
        if self.filter:
            return empty(f"No event matches {self.filter!r}.", "esc  show all again")
        return empty("Nothing has happened yet.", "r  run")


def event_line(happened: Happened, width: int, *, cursor: bool = False) -> Line:
    """`14:03:51 ✓ run 2 of 8 …`, in local time."""
    at = time.strftime("%H:%M:%S", time.localtime(happened.at))
    role = ROLES.get(happened.text[:1], "")
    return line((f"{at} ", "dim"), (fit(happened.text, max(width - 9, 1)), role), cursor=cursor)
