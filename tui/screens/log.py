"""ServerScreen: a server's command line, what is running in it, and the end of its log, followed,
searched, filtered and wrapped."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.widget import Widget
from textual.widgets import Input

from core.experiment.state import BackendState
from tui.draw.glyphs import STATES
from tui.draw.text import Line, fit, line, safe, wrapped
from tui.model import logfile
from tui.model.logfile import LEVELS, Level, LogLine
from tui.model.session import Session
from tui.screens.page import Page
from tui.widgets.lines import Lines
from tui.widgets.prompt import Prompt

ROLES = ("", "warn", "bad")  # by severity


class ServerScreen(Page):
    """The last megabyte of the log. At its end, the screen follows new lines."""

    EVERY_S = 0.5
    HINTS = (
        ("/", "search"),
        ("n", "next"),
        ("N", "previous"),
        ("f", "severity"),
        ("w", "wrap"),
        ("G", "newest"),
        ("esc", "back"),
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,ctrl+c", "back", "back"),
        Binding("slash", "search", "search"),
        Binding("n", "jump(1)", "next match"),
        Binding("N", "jump(-1)", "previous match"),
        Binding("f", "level", "severity"),
        Binding("w", "wrap", "wrap"),
        Binding("home,g", "scroll(-1000000000)", "first"),
        Binding("end,G", "scroll(1000000000)", "newest"),
    ]

    def __init__(self, name: str, session: Session) -> None:
        super().__init__()
        self._server_name, self._session = name, session
        # The journal's path is relative to where the engine was started.
        self.log_file = (session.run_dir or Path()) / name / Path(self.server.log).name
        self.lines: list[LogLine] = []
        self.rows: list[tuple[str, int]] = []  # on display: text, and place in `lines`
        self._first: int | None = None  # row at the top; None follows the end
        self._words = ""
        self.at: int | None = None  # place in `lines` of the match that was jumped to
        self.level: Level = "all"
        self.wraps = False
        self._read: object = None

    @property
    def server(self) -> BackendState:
        """As it is now."""
        return self._session.snapshot.backends[self._server_name]

    def above(self) -> Iterable[Widget]:
        yield Lines("about")

    def below(self) -> Iterable[Widget]:
        yield Prompt("search the log:", "enter finds the newest match, esc leaves")

    def draw(self) -> None:
        """Read the log's end, if it has grown, and draw."""
        width, height = self.body.size
        self._follow(width)
        about = self.query_one("#about", Lines)
        about.put(self._about(*about.size))
        first = self._last_first(height) if self._first is None else self._first
        self.body.put([self._row(row, width) for row in self.rows[first : first + height]])

    def _follow(self, width: int) -> None:
        try:
            stat = self.log_file.stat()
            key = (stat.st_size, stat.st_mtime_ns, width, self.level, self.wraps)
            if key == self._read:
                return
            self._read = key
            self.lines = logfile.of_level(logfile.read(self.log_file), self.level)
        except OSError as error:
            said = f"{self.log_file}: cannot be read: {error.strerror}"
            self.lines, self._read = [LogLine(said, 2)], None
        self.rows = [
            (row, place)
            for place, one in enumerate(self.lines)
            for row in (logfile.rows(safe(one.text), width) if self.wraps else (one.text,))
        ]

    def _about(self, width: int, height: int) -> list[Line]:
        server = self.server
        command = wrapped("$ " + shlex.join(server.command), width, "    ")
        said = " · ".join(f"{k} {v}" for k, v in server.ran.items())
        ran = wrapped(f"ran: {said}", width, "    ")
        wrong = [line((f"! {m}", "bad")) for m in server.mismatches]
        is_up = self._session.stage == "running" or server.phase == "failed"
        phase = server.phase if is_up else "stopped"  # a server stops with its engine
        symbol, role = STATES[phase]
        title = line(
            (f" {self._server_name} ", "strong"),
            (f" {symbol} {phase}", role),
            (f" · {self.log_file}", "dim"),
        )
        room = max(1, (height - 2 - len(wrong)) // 2)
        return [
            title,
            *(line(t) for t in command[:room]),
            *wrong,
            *(line((t, "dim")) for t in ran[:room]),
            line((fit(f" {self._status()}", width), "note")),
        ]

    def _status(self) -> str:
        """How many lines there are, and which match this is."""
        parts = [f"{len(self.lines):,} lines" if len(self.lines) != 1 else "1 line"]
        if self.level != "all":
            parts.append("errors only" if self.level == "errors" else "warnings and errors")
        if self.wraps:
            parts.append("wrapped")
        if self._words:
            found = self._matches()
            place = f"match {found.index(self.at) + 1} of {len(found)}" if self.at in found else ""
            parts.append(f"{self._words!r}: {place or f'{len(found)} matches'}")
        return " · ".join(parts)

    def _row(self, row: tuple[str, int], width: int) -> Line:
        text, place = row
        is_match = bool(self._words) and self._words in self.lines[place].text.lower()
        role = "key" if place == self.at and is_match else "note" if is_match else ""
        return line((fit(text, width), role or ROLES[self.lines[place].severity]))

    def _matches(self) -> list[int]:
        return [n for n, one in enumerate(self.lines) if self._words in one.text.lower()]

    def _last_first(self, height: int) -> int:
        return max(0, len(self.rows) - height)

    # --- keys ---

    def action_scroll(self, by: int) -> None:
        last = self._last_first(self.body.size.height)
        first = (last if self._first is None else self._first) + by
        self._first = None if first >= last else max(0, first)
        self.show()

    def action_search(self) -> None:
        self.query_one(Prompt).open(self._words)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self._words, self.at = event.value.lower(), None
        self._close()
        self.action_jump(-1)

    def _close(self) -> None:
        self.query_one(Prompt).close()
        self.set_focus(None)

    def action_jump(self, by: int) -> None:
        """Go to the next line below (or above) that contains the words, wrapping around; without a
        match so far, to the newest."""
        found = self._matches() if self._words else []
        if found:
            below = [n for n in found if self.at is not None and (n - self.at) * by > 0]
            self.at = (below or found)[0 if by > 0 and self.at is not None else -1]
            self._bring_into_sight(self.at)
        self.show()

    def _bring_into_sight(self, place: int) -> None:
        height = self.body.size.height
        row = next(n for n, (_, of) in enumerate(self.rows) if of == place)
        first = self._last_first(height) if self._first is None else self._first
        if not first <= row < first + height:
            self._first = min(max(0, row - height // 3), self._last_first(height))
        else:
            self._first = first

    def action_level(self) -> None:
        self.level = LEVELS[(LEVELS.index(self.level) + 1) % len(LEVELS)]
        self._first = self.at = None
        self.show()

    def action_wrap(self) -> None:
        self.wraps = not self.wraps
        self._first = None
        self.show()

    def action_back(self) -> None:
        if self.query_one(Prompt).is_open:
            self._close()
        else:
            self.dismiss(None)
