"""The screen of a sweep: the matrix of its cells, read anew every few seconds; enter opens one."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import ClassVar

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.filter import LineFilter

from core.analysis.matrix import Entry
from core.errors import GatescopeError
from tui.draw import theme
from tui.draw.glyphs import AsciiFilter
from tui.draw.text import Line, Span, fit, line
from tui.model import settings
from tui.model.sweep import SweepSession, SweepView
from tui.screens.choice import Choice, Option
from tui.widgets import bars
from tui.widgets.lines import Lines

EVERY_S = 3.0
MOVES = (("arrows", "move"), ("enter", "open the cell"))
RUNS = {"not started": (("r", "run"),), "stopped": (("r", "resume"),)}
GAP = 2


class SweepScreen(App[str]):
    """Ends with the slug of the cell to open; with nothing when it is left."""

    CSS_PATH = "app.tcss"
    CSS = "#head { height: 1; background: $panel; } #matrix { height: 1fr; }"
    TITLE = "gatescope"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1, 0)", "up"),
        Binding("down,j", "move(1, 0)", "down"),
        Binding("left,h", "move(0, -1)", "left"),
        Binding("right,l", "move(0, 1)", "right"),
        Binding("enter", "open", "open the cell"),
        Binding("r", "run", "run"),
        Binding("q,escape,ctrl+c", "leave", "quit"),
    ]

    def __init__(self, session: SweepSession, at: str = "", *, ascii: bool = False) -> None:
        """`at`: the cell that the cursor begins on."""
        super().__init__()
        self._session, self._at, self._ascii = session, at, ascii
        self._place, self._is_reading = (0, 0), False
        self._view, self._said = SweepView(), ""
        theme.wear(self, settings.read(settings.file()).theme)

    def get_line_filters(self) -> Sequence[LineFilter]:
        filters = super().get_line_filters()
        return [*filters, AsciiFilter()] if self._ascii else filters

    def compose(self) -> ComposeResult:
        yield Lines("head")
        yield Lines("matrix")
        yield Lines("keys")

    def on_mount(self) -> None:
        self.screen.set_class(self._ascii, "-ascii")
        self.set_interval(EVERY_S, self.read)
        self.call_after_refresh(self.read)

    def on_resize(self) -> None:
        self.call_after_refresh(self.draw)

    def read(self) -> None:
        """Read the sweep off this thread, unless that is still going on."""
        if not self._is_reading:
            self._is_reading = True
            self.run_worker(self._read, thread=True)

    def action_move(self, down: int, right: int) -> None:
        row, column = self._place
        rows, columns = len(self._view.grid.rows), len(self._view.grid.columns)
        self._place = (
            min(max(row + down, 0), max(rows - 1, 0)),
            min(max(column + right, 0), max(columns - 1, 0)),
        )
        self.draw()

    def action_open(self) -> None:
        """End with the cell under the cursor, if it has begun."""
        entry = self._entry()
        if entry and self._session.cell(entry.cell):
            self.exit(entry.cell)
        elif entry:
            self._say("it has not begun")

    def action_run(self) -> None:
        if self._view.stage in RUNS:
            self._say("starting …")
            self.run_worker(self._start, thread=True, group="start", exclusive=True)
        else:
            self._say(f"it is {self._view.stage}")

    def action_leave(self) -> None:
        if self._view.stage == "running":
            self.run_worker(self._ask_leave())
        else:
            self.exit(None)

    def draw(self) -> None:
        if len(self.screen_stack) > 1:
            return  # a dialog, which may be closing
        self.query_one("#head", Lines).put([line((f" {self._view.head}", "strong"))])
        self.query_one("#matrix", Lines).put(self._body())
        hints = (*MOVES, *RUNS.get(self._view.stage, ()), ("q", "quit"))
        self.query_one("#keys", Lines).put([bars.keys(hints)])

    def _say(self, text: str) -> None:
        self._said = text
        self.draw()

    def _read(self) -> None:
        try:
            view = self._session.read()
        except GatescopeError as error:
            self.call_from_thread(self._failed, str(error))
        else:
            self.call_from_thread(self._take, view)

    def _failed(self, reason: str) -> None:
        self._is_reading = False
        self._say(reason)

    def _take(self, view: SweepView) -> None:
        self._view, self._is_reading = view, False
        if self._at:
            self._place = self._place_of(self._at)
            self._at = ""
        self.draw()

    def _start(self) -> None:
        try:
            self._session.start()
        except GatescopeError as error:
            self.call_from_thread(self._say, f"not started: {error}")
        else:
            self.call_from_thread(self._say, f"running in {self._session.path}")
            self.call_from_thread(self.read)

    async def _ask_leave(self) -> None:
        options = (
            Option("esc", "back", "nothing changes"),
            Option("d", "detach", "leave; the sweep goes on"),
            Option("k", "stop everything", "end the run and its server, then leave"),
        )
        attach = f"reattach with: gatescope attach {shlex.quote(str(self._session.path))}"
        texts = (f"Detaching leaves the sweep going; {attach}",)
        match await self.push_screen_wait(Choice("Quit?", texts, options, interrupt="k")):
            case "d":
                self.exit(None, message=f"detached; {attach}")
            case "k":
                self._say("stopping the run and its server …")
                self.run_worker(self._stop, thread=True)

    def _stop(self) -> None:
        self._session.stop()
        resume = f"gatescope --resume {shlex.quote(str(self._session.path))}"
        self.call_from_thread(self.exit, None, message=f"stopped; go on with: {resume}")

    def _place_of(self, slug: str) -> tuple[int, int]:
        places = (
            (row, column)
            for row, own in enumerate(self._view.grid.rows.values())
            for column, entry in enumerate(own)
            if entry and entry.cell == slug
        )
        return next(places, (0, 0))

    def _entry(self) -> Entry | None:
        row, column = self._place
        rows = list(self._view.grid.rows.values())
        return rows[row][column] if row < len(rows) else None

    def _body(self) -> list[Line]:
        """The matrix, scrolled so that the cursor is seen, what goes with it, and the cell's
        state."""
        entry = self._entry()
        about = f"{entry.cell}: {entry.state}" if entry else ""
        below = [Line(), line((about, "note")), *(line((n, "dim")) for n in self._view.notes)]
        below += [line((self._said, "warn"))] if self._said else []
        room = max(1, self.size.height - 4 - len(below))
        rows = self._rows()
        first = max(0, self._place[0] - room + 1)
        return [line(self._view.title), *rows[:1], *rows[1 + first : 1 + first + room], *below]

    def _rows(self) -> list[Line]:
        """The head and the rows; columns left of the cursor are dropped where it would not be
        seen."""
        grid, (row, column) = self._view.grid, self._place
        names = [grid.head, *map(list, grid.rows)]
        cells = [grid.columns, *([_text(entry) for entry in own] for own in grid.rows.values())]
        widths = [max(map(len, texts)) + GAP for texts in zip(*cells, strict=True)]
        fixed = [max(map(len, texts)) + GAP for texts in zip(*names, strict=True)]
        first = 0
        while first < column and sum(fixed) + sum(widths[first : column + 1]) > self.size.width:
            first += 1
        return [
            Line(
                (
                    *_spans(name, fixed, None, is_head=number < 0),
                    *_spans(
                        texts[first:],
                        widths[first:],
                        column - first if number == row else None,
                        is_head=number < 0,
                    ),
                )
            )
            for number, (name, texts) in enumerate(zip(names, cells, strict=True), -1)
        ]


def _spans(
    row: Sequence[str], widths: Sequence[int], cursor: int | None, *, is_head: bool
) -> list[Span]:
    """Texts in columns of these widths, each with a gap at its end."""
    spans: list[Span] = []
    for place, (text, width) in enumerate(zip(row, widths, strict=True)):
        role = "dim" if is_head else "key" if place == cursor else _role(text)
        spans += [(fit(text, width - GAP), role), (" " * GAP, "")]
    return spans


def _role(text: str) -> str:
    if "failed" in text:
        return "bad"
    return "ok" if text.endswith("*") else ""


def _text(entry: Entry | None) -> str:
    return entry.text if entry else "–"
