"""The terminal UI: one View a tick for all panes, keys to actions, commands to the engine's
process."""

from __future__ import annotations

import asyncio
import locale
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import msgspec
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.command import Provider
from textual.containers import Container
from textual.filter import LineFilter
from textual.timer import Timer
from textual.widgets import Input

from core.errors import FileError
from core.experiment.invocation import Invocation
from tui.actions import BY_NAME, HINTS, LAST_HINTS, PANES, bindings, why_not
from tui.commands import Commands
from tui.draw import theme
from tui.draw.glyphs import AsciiFilter
from tui.draw.text import Line, line
from tui.model.client import Client, client
from tui.model.session import Session, newest_live
from tui.model.view import View
from tui.screens.palette import Actions
from tui.widgets import bars
from tui.widgets.happenings import Events, event_line
from tui.widgets.imbalance import Imbalance
from tui.widgets.lines import Lines
from tui.widgets.live import Live
from tui.widgets.pane import Pane
from tui.widgets.plots import Plots
from tui.widgets.queue import Queue
from tui.widgets.servers import Servers

if TYPE_CHECKING:
    from tui.model.loads import Load, Loads

RATES_HZ = (0.5, 1.0, 2.0, 4.0)
SAID_FOR_S = 8.0


class Gatescope(Commands, App[int]):
    """Draws the session. State of its own: what is paused, pinned, in focus or maximised."""

    CSS_PATH = "app.tcss"
    TITLE = "gatescope"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings()]
    COMMANDS: ClassVar[set[type[Provider] | Callable[[], type[Provider]]]] = {Actions}
    COMMAND_PALETTE_BINDING = "ctrl+p"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (120, "-wide")]  # noqa: RUF012 - declared by Textual as it is
    VERTICAL_BREAKPOINTS = [(0, "-short"), (36, "-tall")]  # noqa: RUF012 - declared by Textual as it is

    def __init__(self, session: Session, *, ascii: bool = False, hz: float = 2.0) -> None:
        super().__init__()
        self.session = session
        self.ascii = ascii
        self.hz = hz
        self.paused = False
        self.pinned = ""
        self.view = View()
        self._loads: Loads | None = None
        self._load: Load | None = None
        self._looks = False
        self._said: tuple[float, Line] = (0.0, Line())
        self._timer: Timer | None = None
        for one in (theme.DARK, theme.LIGHT):
            self.register_theme(one)
        self.theme = theme.DARK.name  # before the first style sheet is read: it is not read twice

    # --- life ---

    def compose(self) -> ComposeResult:
        yield Lines("header")
        yield Lines("tabs")
        with Container(id="body"):
            yield from (Queue(), Servers(), Live(), Imbalance(), Plots(), Events())
        yield Input(
            id="filter", placeholder="words that must be in the line; enter keeps, esc clears"
        )
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
        for number in (signal.SIGHUP, signal.SIGTERM):
            loop.add_signal_handler(number, self.exit, 128 + number)

    def open(self) -> None:
        """Read the session off this thread, then tick."""
        self.show()
        self.run_worker(self._open, thread=True, exit_on_error=True)

    def _open(self) -> None:
        self.session.open()
        self.call_from_thread(self._opened)

    def _opened(self) -> None:
        self._timer = self.set_interval(1 / self.hz, self.tick)
        if self.session.stage == "running":
            self.go_to(self.query_one(Live))
        self.tick()

    def get_line_filters(self) -> Sequence[LineFilter]:
        filters = super().get_line_filters()
        return [*filters, AsciiFilter()] if self.ascii else filters

    # --- one View a tick ---

    def tick(self) -> None:
        self.session.poll()
        self._look()
        if not self.paused:
            self.show()

    def show(self) -> None:
        """Draw what is known now."""
        if len(self.screen_stack) > 1:  # what a dialog hides is not drawn
            return
        self.view = self._view()
        with self.batch_update():
            for pane in self.panes:
                pane.show(self.view)
            self._show_bars()

    def _view(self) -> View:
        session = self.session
        snapshot = session.snapshot
        pinned = self.pinned if self.pinned in snapshot.runs else ""
        view = View(
            snapshot=snapshot,
            stage=session.stage,
            now=session.clock(),
            run_dir=str(session.run_dir or ""),
            problem=session.problem,
            pinned=bool(pinned),
            paused=self.paused,
            hz=self.hz,
            happened=session.happened,
        )
        shown = pinned or view.running or _last_ended(view)
        load = self._load if self._load and self._load.run == shown else None
        return msgspec.structs.replace(view, shown=shown, load=load, client=self._client(shown))

    def _client(self, shown: str) -> Client | None:
        run, run_dir = self.session.snapshot.runs.get(shown), self.session.run_dir
        return client(run_dir, shown, run.result) if run and run.result and run_dir else None

    def _show_bars(self) -> None:
        width = self.size.width
        self.query_one("#header", Lines).put([bars.header(self.view, width)])
        self.query_one("#tabs", Lines).put([bars.tabs(PANES, self.active.NAME)])
        self.query_one("#message", Lines).put([self._message(width)])
        self.query_one("#keys", Lines).put([bars.keys(self._hints())])

    def _message(self, width: int) -> Line:
        """What was said last; else what is wrong; else, where Events is not on screen, what
        happened last."""
        until, said = self._said
        if time.monotonic() < until:
            return said
        if self.session.problem:
            return line((f" ! {self.session.problem}", "bad"))
        if self.session.stage == "engine gone":
            words = f"{self.view.run_dir}/engine.log"
            return line(
                (
                    f" ! the engine is gone: r goes on with what is missing; its last words are in {words}",
                    "bad",
                )
            )
        if self.session.stage == "not started" and self.view.snapshot.runs:
            return line((f" r  starts these {len(self.view.snapshot.runs)} runs", "note"))
        events = self.query_one(Events)
        if events.is_on_screen or not self.view.happened:
            return Line()
        return event_line(self.view.happened[-1], width)

    def _hints(self) -> list[tuple[str, str]]:
        """The keys that do something now; help, palette and quit always."""
        able = [_hint(n) for n in HINTS if not why_not(BY_NAME[n], self.view)]
        always = [_hint(n) for n in LAST_HINTS]
        return [*bars.that_fit(able, self.size.width - bars.room(always)), *always]

    def _look(self) -> None:
        """Follow the gate logs, and see whether the engine is there: in a thread, one at a time."""
        if self.session.run_dir and not self._looks:
            self._looks = True
            recent = self.query_one(Imbalance).recent
            self.run_worker(lambda: self._looked(self.view.shown, recent), thread=True)

    def _looked(self, run: str, recent: bool) -> None:
        from tui.model.loads import Loads

        run_dir = self.session.run_dir
        try:
            if self._loads is None or self._loads.run_dir != run_dir:
                assert run_dir is not None  # looked at before the thread began
                self._loads = Loads(run_dir)
            self.session.look()
            self._loads.read()
            self._load = self._loads.of(run, recent=recent)
        finally:
            self._looks = False

    # --- panes ---

    @property
    def panes(self) -> Iterable[Pane]:
        return self.query(Pane).results()

    @property
    def active(self) -> Pane:
        """The pane in focus, or the one that was."""
        return next((p for p in self.panes if p.has_class("-active")), self.query_one(Queue))

    def go_to(self, pane: Pane) -> None:
        for one in self.panes:
            one.set_class(one is pane, "-active")
        pane.focus()
        self._show_bars()

    def on_descendant_focus(self) -> None:
        """A click may move the focus as well."""
        if isinstance(self.screen.focused, Pane) and self.screen.focused is not self.active:
            self.go_to(self.screen.focused)

    def on_resize(self) -> None:
        self.call_after_refresh(self.show)

    # --- actions ---

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool:
        """A dialog has keys of its own: none of ours reaches past it."""
        return action != "do" or len(self.screen_stack) == 1

    def action_do(self, name: str) -> None:
        """Do an action, or say why it cannot be done."""
        action = BY_NAME[name]
        if reason := why_not(action, self.view):
            self.say(f"{action.key_text} {action.label}: {reason}", "warn")
            return
        target: Pane | Gatescope = self
        if action.pane:
            target = self.query_one(f"#{action.pane}", Pane)
            if action.focuses or not target.is_on_screen:
                self.go_to(target)
        said = getattr(target, f"do_{name}")()
        if isinstance(said, str):
            self.say(said)
        self.show()

    def say(self, text: str, role: str = "note") -> None:
        """Show one line for a while."""
        self._said = (time.monotonic() + SAID_FOR_S, line((f" {text}", role)))
        if len(self.screen_stack) == 1:
            self._show_bars()

    def do_pause(self) -> str:
        self.paused = not self.paused
        return (
            "display paused; the load goes on. space goes on here too"
            if self.paused
            else "display goes on"
        )

    def do_slower(self) -> str:
        return self._at(max((r for r in RATES_HZ if r < self.hz), default=RATES_HZ[0]))

    def do_faster(self) -> str:
        return self._at(min((r for r in RATES_HZ if r > self.hz), default=RATES_HZ[-1]))

    def _at(self, hz: float) -> str:
        self.hz = hz
        if self._timer:
            self._timer.stop()
            self._timer = self.set_interval(1 / hz, self.tick)
        return f"{hz:g} repaints a second"

    def on_plots_exported(self, event: Plots.Exported) -> None:
        self.say(event.text)

    def do_theme(self) -> None:
        self.theme = theme.LIGHT.name if self.theme == theme.DARK.name else theme.DARK.name

    def do_palette(self) -> None:
        self.action_command_palette()

    def do_help(self) -> None:
        from tui.screens.help import Help

        self.push_screen(Help())

    def do_maximise(self) -> None:
        self.query_one("#body").toggle_class("-one")
        self.call_after_refresh(self.show)

    def do_next_pane(self) -> None:
        self._step(1)

    def do_previous_pane(self) -> None:
        self._step(-1)

    def _step(self, by: int) -> None:
        place = PANES.index(self.active.NAME)
        self.go_to(self._pane(PANES[(place + by) % len(PANES)]))

    def _pane(self, name: str) -> Pane:
        return self.query_one(f"#{name.lower()}", Pane)

    def do_open(self) -> str | None:
        pane = self.active
        if isinstance(pane, Queue) and (run := pane.selected()):
            self.pinned = run.run.id
            return f"Live and Imbalance show {self.pinned}; f follows the run in progress again"
        if isinstance(pane, Servers):
            return self.do_log()
        return None

    def do_log(self) -> str | None:
        from tui.screens.log import ServerScreen

        name = self.chosen_server()
        server = self.view.snapshot.backends.get(name)
        if server is None:
            return f"{name} has not been started yet"
        self.push_screen(ServerScreen(name, server, self.session.run_dir))
        return None

    def do_dose(self) -> None:
        from tui.screens.dose import DoseScreen

        self.push_screen(DoseScreen(self.session))

    def do_follow(self) -> None:
        self.pinned = ""

    # --- filter ---

    def do_filter(self) -> None:
        pane = self._filtered()
        box = self.query_one("#filter", Input)
        box.value = pane.filter
        box.add_class("-open")
        self.go_to(pane)
        box.focus()

    def _filtered(self) -> Queue | Events:
        return self.active if isinstance(self.active, Queue | Events) else self.query_one(Queue)

    def on_input_changed(self, event: Input.Changed) -> None:
        if event.input.has_class("-open"):
            self._filtered().narrow(event.value)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.input.remove_class("-open")
        self.active.focus()

    def do_back(self) -> None:
        """The innermost first: the filter box, the filter, the maximised pane, the pinned run."""
        pane, box, body = (
            self._filtered(),
            self.query_one("#filter", Input),
            self.query_one("#body"),
        )
        if box.has_class("-open") or pane.filter:
            box.remove_class("-open")
            pane.narrow("")
            self.active.focus()
        elif body.has_class("-one"):
            self.do_maximise()
        else:
            self.pinned = ""


def _pane_action(name: str) -> Callable[[Gatescope], None]:
    def go(app: Gatescope) -> None:
        app.go_to(app._pane(name))

    return go


for _number, _name in enumerate(PANES, 1):
    setattr(Gatescope, f"do_pane_{_number}", _pane_action(_name))


def _hint(name: str) -> tuple[str, str]:
    return BY_NAME[name].key_text, BY_NAME[name].label


def _last_ended(view: View) -> str:
    """Id of the run that ended last, or ""."""
    ended = [r for r in view.snapshot.runs.values() if r.ended_at]
    return max(ended, key=lambda r: r.ended_at).run.id if ended else ""


# --- entry ---


def run(invocation: Invocation, *, ascii: bool = False) -> int:
    """The UI for a new experiment; or for the one running under runs/, if nothing is selected. Its
    exit code."""
    bare = Invocation(invocation.config_path, engine=invocation.engine)
    found = newest_live() if invocation == bare else None
    return _show(Session(invocation, found), ascii=ascii)


def attach(run_dir: Path, *, ascii: bool = False) -> int:
    """The UI over a run directory, running or not. FileError where it is none."""
    if not (run_dir / "events.jsonl").is_file():
        raise FileError(f"{run_dir}: not a run directory: events.jsonl is expected in it")
    return _show(Session(Invocation(), run_dir), ascii=ascii)


def _show(session: Session, *, ascii: bool) -> int:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        print(
            "gatescope: the terminal UI needs a terminal; without one use: gatescope --batch",
            file=sys.stderr,
        )
        return 2
    plain = ascii or "utf" not in locale.getpreferredencoding(False).lower()
    return Gatescope(session, ascii=plain).run() or 0
