"""ServerScreen: a server's command line, what really runs in it, and the end of its log, followed
and searched."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import Input

from core.experiment.state import BackendState
from tui.draw.text import Line, fit, line, wrapped
from tui.widgets import bars
from tui.widgets.lines import Lines

TAIL_BYTES = 1 << 20
FOLLOW_S = 0.5
HINTS = (("/", "search"), ("n", "next"), ("N", "before"), ("G", "newest"), ("esc", "back"))


class ServerScreen(Screen[None]):
    """The last megabyte of the log; at its end it follows."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,ctrl+c", "back", "back", priority=False),
        Binding("slash", "search", "search"),
        Binding("n", "jump(1)", "next match"),
        Binding("N", "jump(-1)", "match before"),
        Binding("up,k", "scroll(-1)", "up"),
        Binding("down,j", "scroll(1)", "down"),
        Binding("pageup", "page(-1)", "page up"),
        Binding("pagedown", "page(1)", "page down"),
        Binding("home,g", "scroll(-1000000000)", "first"),
        Binding("end,G", "scroll(1000000000)", "newest"),
    ]

    def __init__(self, name: str, server: BackendState, run_dir: Path | None) -> None:
        super().__init__()
        self._server_name, self._server = name, server
        self.log_file = (
            (run_dir or Path()) / name / Path(server.log).name
        )  # wherever the engine was started from
        self.rows: list[str] = []
        self._first: int | None = None  # row at the top; None follows the end
        self._words = ""

    def compose(self) -> ComposeResult:
        yield Lines("about")
        yield Lines("log")
        yield Input(id="filter", placeholder="search; enter finds the next")
        yield Lines("keys")

    def on_mount(self) -> None:
        self.set_interval(FOLLOW_S, self.show)
        self.call_after_refresh(self.show)

    def on_resize(self) -> None:
        self.call_after_refresh(self.show)

    def show(self) -> None:
        """Read the log's end and draw."""
        try:
            self.rows = tail(self.log_file)
        except OSError as error:
            self.rows = [f"{self.log_file}: cannot be read: {error.strerror}"]
        about, log = self.query_one("#about", Lines), self.query_one("#log", Lines)
        about.put(self._about(about.size.width, about.size.height))
        height, width = log.size.height, log.size.width
        first = max(0, len(self.rows) - height) if self._first is None else self._first
        log.put([self._row(row, width) for row in self.rows[first : first + height]])
        self.query_one("#keys", Lines).put([bars.keys(HINTS)])

    def _about(self, width: int, height: int) -> list[Line]:
        command = wrapped("$ " + shlex.join(self._server.command), width, "    ")
        ran = wrapped(
            "ran: " + " · ".join(f"{k} {v}" for k, v in self._server.ran.items()), width, "    "
        )
        wrong = [line((f"NOT AS ASKED: {m}", "bad")) for m in self._server.mismatches]
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
        height = self.query_one("#log", Lines).size.height
        last = max(0, len(self.rows) - height)
        first = (last if self._first is None else self._first) + by
        self._first = None if first >= last else max(0, first)
        self.show()

    def action_page(self, by: int) -> None:
        self.action_scroll(by * max(1, self.query_one("#log", Lines).size.height - 1))

    def action_search(self) -> None:
        box = self.query_one("#filter", Input)
        box.add_class("-open")
        box.focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self._words = event.value.lower()
        event.input.remove_class("-open")
        self.set_focus(None)
        self.action_jump(-1)

    def action_jump(self, by: int) -> None:
        """To the next row below (or above) that holds the words, around the end."""
        if not self._words or not self.rows:
            return
        here = len(self.rows) if self._first is None else self._first
        places = [(here + by * step) % len(self.rows) for step in range(1, len(self.rows) + 1)]
        found = next((p for p in places if self._words in self.rows[p].lower()), None)
        if found is not None:
            self._first = found
        self.show()

    def action_back(self) -> None:
        box = self.query_one("#filter", Input)
        if box.has_class("-open"):
            box.remove_class("-open")
            self.set_focus(None)
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
