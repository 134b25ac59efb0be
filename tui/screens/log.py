"""ServerScreen: a server's command line, what is running in it, and the end of its log, followed
and searched."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.widget import Widget
from textual.widgets import Input

from core.experiment.state import BackendState
from tui.draw.text import Line, fit, line, wrapped
from tui.screens.page import Page
from tui.widgets.lines import Lines
from tui.widgets.prompt import Prompt

TAIL_BYTES = 1 << 20


class ServerScreen(Page):
    """The last megabyte of the log. At its end, the screen follows new lines."""

    EVERY_S = 0.5
    HINTS = (("/", "search"), ("n", "next"), ("N", "previous"), ("G", "newest"), ("esc", "back"))

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,ctrl+c", "back", "back", priority=False),
        Binding("slash", "search", "search"),
        Binding("n", "jump(1)", "next match"),
        Binding("N", "jump(-1)", "previous match"),
        Binding("home,g", "scroll(-1000000000)", "first"),
        Binding("end,G", "scroll(1000000000)", "newest"),
    ]

    def __init__(self, name: str, server: BackendState, run_dir: Path | None) -> None:
        super().__init__()
        self._server_name, self._server = name, server
        # The journal's path is relative to where the engine was started.
        self.log_file = (run_dir or Path()) / name / Path(server.log).name
        self.rows: list[str] = []
        self._first: int | None = None  # row at the top; None follows the end
        self._words = ""

    def above(self) -> Iterable[Widget]:
        yield Lines("about")

    def below(self) -> Iterable[Widget]:
        yield Prompt(placeholder="search; enter finds the match above")

    def draw(self) -> None:
        """Read the log's end and draw."""
        try:
            self.rows = tail(self.log_file)
        except OSError as error:
            self.rows = [f"{self.log_file}: cannot be read: {error.strerror}"]
        about = self.query_one("#about", Lines)
        about.put(self._about(*about.size))
        width, height = self.body.size
        first = max(0, len(self.rows) - height) if self._first is None else self._first
        self.body.put([self._row(row, width) for row in self.rows[first : first + height]])

    def _about(self, width: int, height: int) -> list[Line]:
        command = wrapped("$ " + shlex.join(self._server.command), width, "    ")
        ran = wrapped(
            "ran: " + " · ".join(f"{k} {v}" for k, v in self._server.ran.items()), width, "    "
        )
        wrong = [line((f"! {m}", "bad")) for m in self._server.mismatches]
        title = line(
            (f" {self._server_name} ", "strong"),
            (f" {self._server.phase} · {self.log_file}", "dim"),
        )
        room = max(1, (height - 1 - len(wrong)) // 2)
        return [
            title,
            *(line(t) for t in command[:room]),
            *wrong,
            *(line((t, "dim")) for t in ran[:room]),
        ]

    def _row(self, row: str, width: int) -> Line:
        return line((fit(row, width), "warn" if self._words and self._words in row.lower() else ""))

    # --- keys ---

    def action_scroll(self, by: int) -> None:
        last = max(0, len(self.rows) - self.body.size.height)
        first = (last if self._first is None else self._first) + by
        self._first = None if first >= last else max(0, first)
        self.show()

    def action_search(self) -> None:
        self.query_one(Prompt).open(self._words)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self._words = event.value.lower()
        self._close()
        self.action_jump(-1)

    def _close(self) -> None:
        self.query_one(Prompt).close()
        self.set_focus(None)

    def action_jump(self, by: int) -> None:
        """Go to the next row below (or above) that contains the words, wrapping around."""
        if not self._words or not self.rows:
            return
        here = len(self.rows) if self._first is None else self._first
        places = [(here + by * step) % len(self.rows) for step in range(1, len(self.rows) + 1)]
        found = next((p for p in places if self._words in self.rows[p].lower()), None)
        if found is not None:
            self._first = found
        self.show()

    def action_back(self) -> None:
        if self.query_one(Prompt).is_open:
            self._close()
        else:
            self.dismiss(None)


def tail(file: Path, size: int = TAIL_BYTES) -> list[str]:
    """The lines in the last `size` bytes of a file; a carriage return ends a line too (progress
    bars)."""
    with open(file, "rb") as opened:
        opened.seek(max(0, os.fstat(opened.fileno()).st_size - size))
        text = opened.read().decode(errors="replace")
    rows = [row.rsplit("\r", 1)[-1] for row in text.rstrip().replace("\r\n", "\n").split("\n")]
    return rows[1:] if len(text) >= size else rows
