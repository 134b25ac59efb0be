"""The terminal UI: one View a tick for all panes; keys do actions."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import ClassVar

import msgspec
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.command import Provider
from textual.containers import Container
from textual.events import Event
from textual.filter import LineFilter
from textual.timer import Timer
from textual.widgets import Input

from core.rundir import sweep
from core.terminal import ending
from tui import hints
from tui.actions import ACTIONS, BY_NAME, PANES, Action, why_not
from tui.draw import theme
from tui.draw.glyphs import AsciiFilter
from tui.draw.text import Line, line, safe
from tui.model import notice, settings
from tui.model.session import Session
from tui.model.settings import Settings
from tui.model.view import View
from tui.screens.palette import Actions
from tui.widgets import bars
from tui.widgets.happenings import Events
from tui.widgets.imbalance import Imbalance
from tui.widgets.lines import Lines
from tui.widgets.live import Live
from tui.widgets.pane import Pane
from tui.widgets.plots import Plots
from tui.widgets.prompt import Prompt
from tui.widgets.queue import Queue
from tui.widgets.servers import Servers

SAID_FOR_S = 8.0
# Shares of the rows of panes, in screens of at least so many lines: as in VERTICAL_BREAKPOINTS.
ROWS = ((56, (12, 20, 17, 8)), (36, (12, 12, 15, 6)), (28, (8, 11, 9)))


def _bindings() -> list[Binding]:
    """The App's bindings. Every key goes through `do`, which says why if it cannot be done."""
    own = [_binding(a, a.key, a.name, priority="tab" in a.key) for a in ACTIONS]
    return [*own, _binding(BY_NAME["quit"], "ctrl+c", "interrupt", priority=True)]


def _binding(action: Action, key: str, id: str, *, priority: bool) -> Binding:
    return Binding(
        key,
        f"do('{action.name}')",
        action.label,
        False,
        action.key_text,
        priority,
        tooltip=action.help,
        id=id,
    )


class Gatescope(App[int]):
    """Draws the session. Its own state: what is frozen, pinned, in focus or maximised."""

    CSS_PATH = "app.tcss"
    TITLE = "gatescope"
    BINDINGS: ClassVar[list[BindingType]] = [
        *_bindings(),
        Binding(
            "ctrl+z",
            "suspend_process",
            "suspend",
            show=False,
            priority=True,
            tooltip="Suspend; the shell's fg goes on",
        ),
    ]
    COMMANDS: ClassVar[set[type[Provider] | Callable[[], type[Provider]]]] = {Actions}
    COMMAND_PALETTE_BINDING = "ctrl+p"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]  # noqa: RUF012 - declared by Textual as it is
    VERTICAL_BREAKPOINTS = [(0, "-short"), (28, "-medium"), (36, "-tall"), (56, "-vast")]  # noqa: RUF012 - declared by Textual as it is

    def __init__(
        self, session: Session, *, ascii: bool = False, settings_file: Path | None = None
    ) -> None:
        """`settings_file`: where what the user sets is kept; None: nowhere."""
        super().__init__()
        self.session = session
        self.ascii = ascii
        self._settings_file = settings_file
        self.settings = settings.read(settings_file) if settings_file else Settings()
        self.paused = False
        self.pinned = ""
        self.leads_to: Path | None = None  # a sweep, whose screen comes next
        self.view = View()
        self._is_looking = False
        self._said: tuple[float, Line] = (0.0, Line())
        self._timer: Timer | None = None
        theme.wear(self, self.settings.theme)  # before the style sheet is read: not read twice

    # --- life ---

    def compose(self) -> ComposeResult:
        yield Lines("header")
        yield Lines("tabs")
        with Container(id="body"):
            yield from (Queue(), Servers(), Live(), Imbalance(), Plots(), Events())
        yield Prompt("filter:", "show only lines with these words; enter keeps, esc clears")
        yield Lines("message")
        yield Lines("keys")

    def on_mount(self) -> None:
        self.screen.set_class(self.ascii, "-ascii")
        self.go_to(self.query_one(Queue))
        self._leave_by_signal()
        self.call_after_refresh(self.open)

    def _leave_by_signal(self) -> None:
        """A lost terminal (SIGHUP) or SIGTERM ends the screen, not the engine: that is a process of
        its own."""
        loop = asyncio.get_running_loop()
        for number in ending():
            if number == signal.SIGINT:
                continue  # a key here: ctrl-C asks
            loop.add_signal_handler(number, self.exit, 128 + number)

    def open(self) -> None:
        """Read the session off this thread, then tick."""
        self.show()
        self.run_worker(self._open, thread=True, exit_on_error=True)

    def open_other(self, run_dir: Path | None) -> None:
        """Show another run directory, or a sweep, in place of this one."""
        if run_dir is None or run_dir == self.session.run_dir:
            return
        if sweep.is_sweep(run_dir):
            self.leads_to = run_dir
            self.exit(0)
            return
        if self._timer:
            self._timer.stop()
        self.pinned = ""
        self.session = Session(self.session.invocation, run_dir, self.session.clock)
        self.open()

    def _open(self) -> None:
        self.session.open()
        self.call_from_thread(self._opened)

    def _opened(self) -> None:
        self._timer = self.set_interval(1 / self.settings.hz, self.tick)
        if self.session.stage == "running":
            self.go_to(self.query_one(Live))
        self.tick()

    def get_line_filters(self) -> Sequence[LineFilter]:
        filters = super().get_line_filters()
        return [*filters, AsciiFilter()] if self.ascii else filters

    # --- one View a tick ---

    def keep(self, changed: Settings) -> None:
        """Go by these settings, now and the next time."""
        if self._timer and changed.hz != self.settings.hz:
            self._timer.stop()
            self._timer = self.set_interval(1 / changed.hz, self.tick)
        self.settings = changed
        if self._settings_file and (problem := settings.write(self._settings_file, changed)):
            self.say(problem, "warn")

    def tick(self) -> None:
        if not self.query(Pane):  # the App is ending, and they have gone
            return
        before = self.session.snapshot
        self.session.poll()
        if self.settings.bell and (news := notice.of(before, self.session.snapshot)):
            self.ring(news)
        self._look()
        if not self.paused:
            self.show()

    def ring(self, news: str) -> None:
        """The terminal's bell, and a notification where it has them (OSC 9)."""
        self.bell()
        if self._driver:
            self._driver.write(f"\x1b]9;gatescope: {safe(news)}\x07")

    def show(self) -> None:
        """Draw what is known now."""
        if len(self.screen_stack) > 1:  # what a dialog hides is not drawn
            return
        seen = self.session.view(self.pinned)
        self.view = msgspec.structs.replace(seen, paused=self.paused, hz=self.settings.hz)
        with self.batch_update():
            for pane in self.panes:
                pane.show(self.view)
            self._show_bars()

    def _show_bars(self) -> None:
        width = self.size.width
        self.query_one("#header", Lines).put([bars.header(self.view, width)])
        self.query_one("#tabs", Lines).put([bars.tabs(PANES, self.active.NAME)])
        self.query_one("#message", Lines).put([self._message(width)])
        self.query_one("#keys", Lines).put([bars.keys(hints.shown(self.view, width))])

    def _message(self, width: int) -> Line:
        until, said = self._said
        if time.monotonic() < until:
            return said
        shows_events = self.query_one(Events).is_on_screen
        return bars.message(self.session, self.view, width, shows_events=shows_events)

    def say(self, text: str, role: str = "note") -> None:
        """Show one line for a while."""
        self._said = (time.monotonic() + SAID_FOR_S, line((f" {text}", role)))
        if len(self.screen_stack) == 1:
            self._show_bars()

    def on_pane_selected(self, event: Pane.Selected) -> None:
        self.pinned = event.run
        self.show()

    def on_plots_exported(self, event: Plots.Exported) -> None:
        self.say(event.text)

    def _look(self) -> None:
        """Follow the gate logs and check on the engine in a thread, one at a time."""
        if self.session.run_dir and not self._is_looking:
            self._is_looking = True
            recent = self.query_one(Imbalance).recent
            self.run_worker(lambda: self._looked(self.view.shown, recent), thread=True)

    def _looked(self, run: str, recent: bool) -> None:
        try:
            self.session.look(run, recent=recent)
        finally:
            self._is_looking = False

    # --- panes ---

    @property
    def panes(self) -> Iterable[Pane]:
        return self.query(Pane).results()

    @property
    def active(self) -> Pane:
        """The pane in focus, or the one that was."""
        return next((p for p in self.panes if p.has_class("-active")), self.query_one(Queue))

    @property
    def filtered(self) -> Queue | Events:
        """The pane that a filter typed now applies to."""
        return self.active if isinstance(self.active, Queue | Events) else self.query_one(Queue)

    def pane(self, name: str) -> Pane:
        return self.query_one(f"#{name.lower()}", Pane)

    def go_to(self, pane: Pane) -> None:
        for one in self.panes:
            one.set_class(one is pane, "-active")
        self.query_one("#body").set_class(pane.NAME == Events.NAME, "-events")
        self.focus_on(pane)
        self._show_bars()

    def focus_on(self, pane: Pane) -> None:
        self.screen.set_focus(pane)  # now: the next key is its own
        pane.focus()  # and again once it is displayed

    def on_descendant_focus(self) -> None:
        """A click may move the focus as well."""
        if isinstance(self.screen.focused, Pane) and self.screen.focused is not self.active:
            self.go_to(self.screen.focused)

    def on_resize(self, event: events.Resize) -> None:
        self.size_panes(event.size.height)  # the App's own size is still the one before
        self.call_after_refresh(self.show)

    def size_panes(self, height: int) -> None:
        """Share the height of the screen out among the rows of panes."""
        rows = next((shares for least, shares in ROWS if height >= least), ())
        heights = (f"{share * self.settings.row(row):g}fr" for row, share in enumerate(rows))
        self.query_one("#body").styles.grid_rows = " ".join(heights) or None

    # --- input ---

    async def on_event(self, event: Event) -> None:
        """Keys that come in one burst, as behind a slow line, act one after another: what a key is
        bound to is done before the next is looked at, unless it is typed into an Input."""
        if isinstance(event, events.Key) and not (event.is_forwarded or self._is_typed(event)):
            for is_first in (True, False):  # as Textual, which has the others go up from the focus
                if await self._check_bindings(event.key, priority=is_first):
                    return
        await super().on_event(event)

    def _is_typed(self, key: events.Key) -> bool:
        return isinstance(self.focused, Input) and key.key != "escape"

    def on_click(self, event: events.Click) -> None:
        """A tab goes to its pane; a key on the bottom line does what it does."""
        clicked = event.widget
        if not isinstance(clicked, Lines) or len(self.screen_stack) > 1:
            return
        place = clicked.span_at(event.x, event.y)
        if place is not None and clicked.id == "tabs":
            self.go_to(self.pane(PANES[place]))
        elif place is not None and clicked.id == "keys":
            self.action_do(hints.names(self.view, self.size.width)[place // 2])

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool:
        """A dialog has keys of its own: none of ours reaches past it."""
        return action != "do" or len(self.screen_stack) == 1

    def action_do(self, name: str) -> None:
        """Do an action, or say why it cannot be done."""
        action = BY_NAME[name]
        if reason := why_not(action, self.view):
            self.say(f"{action.key_text} {action.label}: {reason}", "warn")
            return
        if said := action.do(self):
            self.say(said)
        self.show()

    def on_input_changed(self, event: Input.Changed) -> None:
        if self._is_filtering:
            self.filtered.narrow(event.value)

    def on_input_submitted(self) -> None:
        if self._is_filtering:
            self.query_one(Prompt).close()
            self.focus_on(self.active)

    @property
    def _is_filtering(self) -> bool:
        """What is typed into a screen over the panes is no filter of theirs."""
        return len(self.screen_stack) == 1 and self.query_one(Prompt).is_open
