"""Every action: its key, its name in the palette, its line of help. Bindings, help and palette come
from here."""

from __future__ import annotations

from dataclasses import dataclass

from textual.binding import Binding

from core.experiment.state import Phase
from tui.model.view import View

PANES = ("Queue", "Live", "Servers", "Imbalance", "Plots", "Events")


@dataclass(frozen=True, slots=True)
class Action:
    """`do_<name>` of the App, or of the pane that `pane` names, does it.

    `needs`: conditions that `why_not` checks. `focuses`: it acts on the pane's cursor, so that pane
    is gone to first.
    """

    key: str
    name: str
    label: str
    help: str
    needs: str = ""
    pane: str = ""
    focuses: bool = False
    written: str = ""  # how the key is written, where Textual's name for it is another

    @property
    def key_text(self) -> str:
        return self.written or self.key


ACTIONS = (
    Action("r", "run", "run", "Start the experiment, or go on with what is missing", "idle"),
    Action(
        "x",
        "cancel",
        "cancel",
        "Cancel the marked runs; else the one under Queue's cursor; else the one running",
        "live",
    ),
    Action(
        "n",
        "next",
        "next run",
        "Cancel the run in progress, keep what it has, and go on with the next",
        "running",
    ),
    Action(
        "R",
        "retry",
        "retry",
        "Queue the marked runs again; else all that failed or were cancelled, also where the engine has ended",
        "ended",
    ),
    Action("a", "add", "add", "Choose datasets to run once more at every backend", "live"),
    Action(
        "s",
        "stop_server",
        "stop server",
        "Stop a server and cancel its runs: the one chosen in Servers, else the one that is up",
        "live server",
    ),
    Action(
        "space",
        "pause",
        "pause",
        "Hold the display still, or let it go on; the load is never paused",
    ),
    Action(
        "less_than_sign",
        "slower",
        "slower display",
        "Repaint half as often, down to 0.5 Hz",
        written="<",
    ),
    Action(
        "greater_than_sign",
        "faster",
        "faster display",
        "Repaint twice as often, up to 4 Hz",
        written=">",
    ),
    Action(
        "slash",
        "filter",
        "filter",
        "Show only the runs (or, from Events, the events) that hold the words typed",
        written="/",
    ),
    Action(
        "m",
        "mark",
        "mark",
        "Mark or unmark the run under the cursor",
        "runs",
        "queue",
        focuses=True,
    ),
    Action(
        "J",
        "later",
        "run later",
        "Move the run under the cursor, or the marked ones, down the queue",
        "live queued",
    ),
    Action(
        "K",
        "sooner",
        "run sooner",
        "Move the run under the cursor, or the marked ones, up the queue",
        "live queued",
    ),
    Action(
        "o",
        "order",
        "order",
        "Order by dataset, score, TTFT, TPOT, tok/s, CV, excess CV, or as they run",
        "runs",
        "queue",
    ),
    Action(
        "d",
        "pairs",
        "datasets",
        "Set the backends side by side for each dataset, or list the runs again",
        "runs",
        "queue",
    ),
    Action(
        "f", "follow", "follow", "Let Live and Imbalance follow the run in progress again", "pinned"
    ),
    Action(
        "w",
        "window",
        "window",
        "Show the load of the whole run, or of its last 64 steps",
        pane="imbalance",
    ),
    Action(
        "O",
        "worst_first",
        "worst first",
        "Order layers by excess CV, or by number",
        pane="imbalance",
    ),
    Action(
        "v",
        "by_run",
        "by run",
        "Show the CVs of every run, or the layers of one",
        "points",
        "imbalance",
    ),
    Action(
        "F",
        "figure",
        "figure",
        "Plot the next figure: scatter, heat map, CV over time, step time, ECDF, load of ranks",
        "runs",
        "plots",
        focuses=True,
    ),
    Action("p", "metric", "metric", "Plot the next metric", "points", "plots"),
    Action(
        "i",
        "axis",
        "axis",
        "Plot against per-step, excess, aggregated or predicted imbalance",
        "points",
        "plots",
    ),
    Action(
        "u", "outliers", "outliers", "Show outliers hollow, or leave them out", "points", "plots"
    ),
    Action(
        "e",
        "export",
        "export",
        "Write the plot as it is shown, as PNG and CSV, and say where",
        "points",
        "plots",
    ),
    Action(
        "D",
        "dose",
        "forced routing",
        "What imposed skew costs: the forced-routing runs, plotted and in words",
        "forced",
    ),
    Action(
        "l",
        "log",
        "log",
        "Read and search the log of the server chosen in Servers, else of the newest",
        "log",
    ),
    Action(
        "enter",
        "open",
        "open",
        "Queue: show this run in Live and Imbalance. Servers: its command line and log",
    ),
    Action(
        "escape", "back", "back", "Leave a filter, a maximised pane or a pinned run", written="esc"
    ),
    Action(
        "plus",
        "maximise",
        "maximise",
        "Give this pane the whole screen, or take it back",
        written="+",
    ),
    *(
        Action(str(n), f"pane_{n}", f"go to {name}", f"Go to {name}")
        for n, name in enumerate(PANES, 1)
    ),
    Action("tab", "next_pane", "next pane", "Go to the next pane"),
    Action("shift+tab", "previous_pane", "previous pane", "Go to the pane before"),
    Action("t", "theme", "light or dark", "Change between the dark and the light colours"),
    Action("colon", "palette", "command", "Find an action by its name and do it", written=":"),
    Action("question_mark", "help", "help", "Every key, and what it does", written="?"),
    Action(
        "q", "quit", "quit", "Quit; while a run goes on it asks: back, detach, or stop everything"
    ),
)
NO_DOSE = "no run of it is done: gatescope --dose 0,0.5,1 --pattern hot-rank makes some"
BY_NAME = {a.name: a for a in ACTIONS}
# What the bottom line has room for, the first first; the last three always.
HINTS = (
    "run",
    "cancel",
    "pause",
    "next",
    "retry",
    "dose",
    "filter",
    "maximise",
    "add",
    "log",
    "export",
    "stop_server",
)
LAST_HINTS = ("help", "palette", "quit")


def bindings() -> list[Binding]:
    """What the App binds. Every key goes through `do`, which says why where something cannot be
    done."""
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


def why_not(action: Action, view: View) -> str:
    """Why this cannot be done now; "" where it can."""
    return next((reason for need in action.needs.split() if (reason := _lacks(need, view))), "")


def _lacks(need: str, view: View) -> str:
    phases = {r.phase for r in view.snapshot.runs.values()}
    servers = view.snapshot.backends.values()
    reasons = {
        "live": (view.stage != "running", "no engine is running; r starts it"),
        "running": (not view.running, "no run is in progress"),
        "ended": (not phases & {"failed", "cancelled"}, "no run has failed or was cancelled"),
        "queued": ("queued" not in phases, "no run is queued"),
        "runs": (not phases, "there are no runs"),
        "pinned": (not view.pinned, "it follows the run in progress already"),
        "points": ("done" not in phases, "no run is done yet"),
        "forced": (not any(r.run.dose and r.figures for r in view.snapshot.runs.values()), NO_DOSE),
        "server": (not any(s.phase in ("starting", "ready") for s in servers), "no server is up"),
        "log": (not servers, "no server has been started yet"),
    }
    if need == "idle":
        return _busy(view, phases)
    lacks, reason = reasons[need]
    return reason if lacks else ""


def _busy(view: View, phases: set[Phase]) -> str:
    if view.stage in ("running", "reading"):
        return "it is running already" if view.stage == "running" else "still reading"
    left = phases - {"done", "cancelled"}
    if not phases or left:
        return ""
    if "cancelled" in phases:
        return "only cancelled runs are left; R runs them"
    return "nothing is left to run; start anew with: gatescope --out DIR"
