"""Every action: its key, what it does, its name in the palette, its line of help. Bindings, help
and palette come from here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from tui import commands, display, needs
from tui.model.view import View
from tui.widgets.imbalance import Imbalance
from tui.widgets.pane import Pane
from tui.widgets.plots import Plots
from tui.widgets.queue import Queue

if TYPE_CHECKING:
    from tui.app import Gatescope

P = TypeVar("P", bound=Pane)
PANES = ("Queue", "Live", "Servers", "Imbalance", "Plots", "Events")
Do = Callable[["Gatescope"], str | None]  # what it returns is shown for a while


@dataclass(frozen=True, slots=True)
class Action:
    """`needs`: conditions that `why_not` checks. `written`: how the key is written, where Textual
    has another name for it."""

    key: str
    name: str
    do: Do
    label: str
    help: str
    needs: str = ""
    written: str = ""

    @property
    def key_text(self) -> str:
        return self.written or self.key


def _on(pane: type[P], do: Callable[[P], str | None], *, focuses: bool = False) -> Do:
    """Do it in a pane; go to that pane first if it is hidden, or if its cursor is meant."""

    def done(app: Gatescope) -> str | None:
        target = app.query_one(pane)
        if focuses or not target.is_on_screen:
            app.go_to(target)
        return do(target)

    return done


def _go_to(name: str) -> Do:
    return lambda app: app.go_to(app.pane(name))


ACTIONS = (
    Action(
        "r",
        "run",
        commands.run,
        "run",
        "Start the experiment, or resume with the runs that are missing",
        needs="idle",
    ),
    Action(
        "x",
        "cancel",
        commands.cancel,
        "cancel",
        "Cancel the marked runs; else the one under Queue's cursor; else the one running",
        needs="live",
    ),
    Action(
        "n",
        "next",
        commands.skip,
        "next run",
        "Cancel the run in progress, keep its finished requests, and start the next run",
        needs="running",
    ),
    Action(
        "R",
        "retry",
        commands.retry,
        "retry",
        "Queue the marked runs again; else every failed or cancelled run. Restarts an ended engine",
        needs="ended",
    ),
    Action(
        "a",
        "add",
        commands.add,
        "add",
        "Choose datasets to run once more at every backend",
        needs="live",
    ),
    Action(
        "s",
        "stop_server",
        commands.stop_server,
        "stop server",
        "Stop a server and cancel its runs: the one chosen in Servers, else the one that is up",
        needs="live server",
    ),
    Action(
        "space",
        "pause",
        display.freeze,
        "freeze display",
        "Freeze or resume the display; the load is never paused",
    ),
    Action(
        "less_than_sign",
        "slower",
        display.slower,
        "slower display",
        "Repaint half as often, down to 0.5 Hz",
        written="<",
    ),
    Action(
        "greater_than_sign",
        "faster",
        display.faster,
        "faster display",
        "Repaint twice as often, up to 4 Hz",
        written=">",
    ),
    Action(
        "slash",
        "filter",
        display.filter_rows,
        "filter",
        "Show only the runs (in Events: the events) that contain the words typed",
        written="/",
    ),
    Action(
        "m",
        "mark",
        _on(Queue, Queue.mark, focuses=True),
        "mark",
        "Mark or unmark the run under the cursor",
        needs="runs",
    ),
    Action(
        "J",
        "later",
        commands.later,
        "run later",
        "Move the run under the cursor, or the marked ones, down the queue",
        needs="live queued",
    ),
    Action(
        "K",
        "sooner",
        commands.sooner,
        "run sooner",
        "Move the run under the cursor, or the marked ones, up the queue",
        needs="live queued",
    ),
    Action(
        "o",
        "order",
        _on(Queue, Queue.next_order),
        "order",
        "Sort by dataset, score, TTFT, TPOT, tok/s, CV or excess CV, or keep the run order",
        needs="runs",
    ),
    Action(
        "z",
        "reverse",
        _on(Queue, Queue.reverse_order),
        "reverse",
        "Sort from the smallest instead of the largest, or back",
        needs="runs",
    ),
    Action(
        "d",
        "pairs",
        _on(Queue, Queue.pair),
        "pair backends",
        "Pair the backends dataset by dataset, or list the runs again",
        needs="runs",
    ),
    Action(
        "f",
        "follow",
        display.follow,
        "follow",
        "Let Live and Imbalance follow the run in progress again",
        needs="pinned",
    ),
    Action(
        "w",
        "window",
        _on(Imbalance, Imbalance.change_window),
        "window",
        "Show the load of the whole run, or of its last 64 steps",
    ),
    Action(
        "O",
        "worst_first",
        _on(Imbalance, Imbalance.change_order),
        "worst first",
        "Sort layers by excess CV, or by number",
    ),
    Action(
        "v",
        "by_run",
        _on(Imbalance, Imbalance.change_rows),
        "by run",
        "Show the CVs of every run, or the layers of one",
        needs="points",
    ),
    Action(
        "F",
        "figure",
        _on(Plots, Plots.next_figure, focuses=True),
        "figure",
        "Plot the next figure: scatter, heat map, CV over time, step time, ECDF, rank load",
        needs="runs",
    ),
    Action(
        "p",
        "metric",
        _on(Plots, Plots.next_metric),
        "metric",
        "Plot the next metric",
        needs="points",
    ),
    Action(
        "i",
        "axis",
        _on(Plots, Plots.next_axis),
        "axis",
        "Plot against per-step, excess, aggregated or predicted imbalance",
        needs="points",
    ),
    Action(
        "u",
        "outliers",
        _on(Plots, Plots.hide_outliers),
        "outliers",
        "Show outliers as hollow marks, or hide them",
        needs="points",
    ),
    Action(
        "e",
        "export",
        _on(Plots, Plots.export),
        "export",
        "Write the plot on screen as a PNG, and a scatter also as a CSV",
        needs="points",
    ),
    Action(
        "D",
        "dose",
        display.forced_routing,
        "forced routing",
        "What imposed skew costs: the forced-routing runs, plotted and in words",
        needs="forced",
    ),
    Action(
        "c",
        "findings",
        display.findings,
        "findings",
        "What the runs say: validity, the backends compared, what skew costs",
        needs="points",
    ),
    Action(
        "y",
        "copy",
        display.copy_path,
        "copy path",
        "Copy the path of the selected run's result, else of the run directory (OSC 52)",
        needs="started",
    ),
    Action(
        "b",
        "browse",
        display.past_runs,
        "past runs",
        "List the run directories beside this one, and open one of them",
    ),
    Action(
        "C",
        "config",
        display.config,
        "config",
        "What would run, the config's mistakes and its text; E edits it in $EDITOR",
    ),
    Action(
        "B",
        "mute",
        display.mute,
        "bell",
        "Ring the terminal's bell and notify (OSC 9) when the experiment ends or fails, or do not",
    ),
    Action(
        "l",
        "log",
        display.server_log,
        "log",
        "Read and search the log of the server chosen in Servers, else of the newest one",
        needs="log",
    ),
    Action(
        "enter",
        "open",
        display.open_row,
        "open",
        "Read all about the selected run; in Servers: its command line and log",
    ),
    Action(
        "escape",
        "back",
        display.back,
        "back",
        "Leave a filter, a maximised pane or a selected run",
        written="esc",
    ),
    Action(
        "plus",
        "maximise",
        display.maximise,
        "maximise",
        "Give this pane the whole screen, or show all panes again",
        written="+",
    ),
    *(
        Action(str(n), f"pane_{n}", _go_to(name), f"go to {name}", f"Go to {name}")
        for n, name in enumerate(PANES, 1)
    ),
    Action("tab", "next_pane", display.next_pane, "next pane", "Go to the next pane"),
    Action(
        "shift+tab",
        "previous_pane",
        display.previous_pane,
        "previous pane",
        "Go to the previous pane",
    ),
    Action(
        "t",
        "theme",
        display.change_theme,
        "theme",
        "Change the theme: dark, light, or terminal: its own 16 colours",
    ),
    Action(
        "right_square_bracket",
        "taller",
        display.taller,
        "taller",
        "Make the row of this pane taller; the height is remembered",
        written="]",
    ),
    Action(
        "left_square_bracket",
        "shorter",
        display.shorter,
        "shorter",
        "Make the row of this pane shorter",
        written="[",
    ),
    Action(
        "colon",
        "palette",
        display.palette,
        "command",
        "Find an action by its name and do it",
        written=":",
    ),
    Action(
        "question_mark",
        "help",
        display.show_help,
        "help",
        "Every key, and what it does",
        written="?",
    ),
    Action(
        "q",
        "quit",
        commands.leave,
        "quit",
        "Quit; while the engine runs, choose: back, detach or stop everything",
    ),
)
BY_NAME = {a.name: a for a in ACTIONS}


def why_not(action: Action, view: View) -> str:
    """Why this cannot be done now; "" where it can."""
    return next(
        (reason for need in action.needs.split() if (reason := needs.lacking(need, view))), ""
    )
