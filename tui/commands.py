"""What keys ask of the engine: start, cancel, retry, reorder, add, stop. What is hard to reverse
asks first."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from core.errors import GatescopeError
from core.experiment import control, plan
from core.experiment.control import Command, ControlError
from core.experiment.plan import Run
from tui.draw import text
from tui.screens.choice import Choice, Option
from tui.widgets.queue import Queue
from tui.widgets.servers import Servers

if TYPE_CHECKING:
    from tui.app import Gatescope

BACK = Option("esc", "back", "nothing changes")
FIX = "Fix this, then press r again. The log of a server that failed: l"


# --- run ---


def run(app: Gatescope, *, retry_cancelled: bool = False) -> None:
    app.say("starting the engine …")
    start = partial(_start, app, retry_cancelled=retry_cancelled)
    app.run_worker(start, thread=True, group="start", exclusive=True)


def _start(app: Gatescope, *, retry_cancelled: bool) -> None:
    try:
        run_dir = app.session.start(retry_cancelled=retry_cancelled)
    except GatescopeError as error:
        app.session.problem = str(error)
        app.session.note(f"! not started: {error}")
        app.call_from_thread(app.push_screen, Choice("Not started", [str(error), FIX], (BACK,)))
    else:
        app.call_from_thread(_started, app, f"running in {run_dir}")


def _started(app: Gatescope, said: str) -> None:
    """Say it, and show Live where a small terminal hides it."""
    if not app.pane("Live").is_on_screen:
        app.go_to(app.pane("Live"))
    app.say(said)


def _give(app: Gatescope, command: Command, done: str) -> None:
    """Give the engine a command, in a thread; say `done`, or why not."""
    app.run_worker(partial(_send, app, command, done), thread=True)


def _send(app: Gatescope, command: Command, done: str) -> None:
    try:
        app.session.send(command)
    except ControlError as error:
        app.call_from_thread(app.say, f"not done: {error}", "bad")
    else:
        app.call_from_thread(app.say, done)


# --- the queue ---


def cancel(app: Gatescope) -> str | None:
    runs = _cancellable(app)
    if not runs:
        return "no run is in progress; put Queue's cursor on a queued one"
    if app.view.running in runs:
        app.run_worker(_ask_cancel(app, runs))
    else:
        _give(app, control.Cancel(runs), f"cancelled: {_listed(runs)}; R queues them again")
    return None


def _cancellable(app: Gatescope) -> list[str]:
    """The marked runs, else the one under Queue's cursor, else the one running; only those that can
    be cancelled."""
    queue = app.query_one(Queue)
    phases = {i: r.phase for i, r in app.view.snapshot.runs.items()}
    chosen = queue.chosen() if queue.marked or queue.has_focus else []
    able = [i for i in chosen if phases[i] in ("queued", "running")]
    if able:
        return able
    return [app.view.running] if app.view.running else []


async def _ask_cancel(app: Gatescope, runs: list[str]) -> None:
    dropped = "Requests in flight are dropped; finished ones are kept as a partial result."
    options = (BACK, Option("x", "cancel", f"end {_listed(runs)} here"))
    if await app.push_screen_wait(Choice(f"Cancel {_listed(runs)}?", (dropped,), options)) == "x":
        _give(app, control.Cancel(runs), f"cancelled: {_listed(runs)}")


def skip(app: Gatescope) -> None:
    app.run_worker(_ask_cancel(app, [app.view.running]))


def retry(app: Gatescope) -> str | None:
    marked = app.query_one(Queue).marked
    ended = [i for i, r in app.view.snapshot.runs.items() if r.phase in ("failed", "cancelled")]
    runs = [i for i in ended if i in marked] if marked else ended
    if not runs:
        return "none of the marked runs has failed or been cancelled"
    if app.view.stage == "running":
        _give(app, control.Retry(runs), f"queued again: {_listed(runs)}")
        return None
    if set(runs) != set(ended):
        return (
            "no engine is running; unmark all runs, and R starts it with every failed or "
            "cancelled run"
        )
    run(app, retry_cancelled=True)
    return None


def later(app: Gatescope) -> str | None:
    return _move(app, 1)


def sooner(app: Gatescope) -> str | None:
    return _move(app, -1)


def _move(app: Gatescope, by: int) -> str | None:
    """Put the chosen queued runs one place further down or up among the queued ones."""
    queue = app.query_one(Queue)
    queued = [i for i, r in app.view.snapshot.runs.items() if r.phase == "queued"]
    chosen = [i for i in queue.chosen() if i in queued]
    if not chosen:
        return "only queued runs can be moved; put Queue's cursor on one"
    _give(app, control.Move(chosen, _before(queued, chosen, by)), f"moved: {_listed(chosen)}")
    return None


def _before(queued: list[str], chosen: list[str], by: int) -> str:
    """The queued run that the chosen ones go in front of, "" for the end of the queue."""
    rest = [i for i in queued if i not in chosen]
    place = sum(queued.index(i) < queued.index(chosen[0]) for i in rest) + by
    if not rest or place >= len(rest):
        return ""
    return rest[max(place, 0)]


def add(app: Gatescope) -> None:
    app.run_worker(_add(app))


async def _add(app: Gatescope) -> None:
    from tui.screens.picker import Picker

    try:
        found = app.session.datasets()
    except GatescopeError as error:
        app.say(str(error), "bad")
        return
    chosen = await app.push_screen_wait(Picker(found))
    if not chosen:
        return
    backends = list(app.view.backends)
    where = await _place(app, chosen, backends)
    if where != "esc":
        done = f"queued at {_listed(backends)}: {_listed(chosen)}"
        _give(app, control.Add(chosen, backends, beside=where == "b"), done)


async def _place(app: Gatescope, datasets: Sequence[str], backends: Sequence[str]) -> str:
    """Where the added runs go: "e" for the end; asked where that changes servers more often than it
    has to."""
    waits = ("running", "queued")
    order = [r.run for r in app.view.snapshot.runs.values() if r.phase in waits]
    last = {r.run.backend: r.run.start for r in app.view.snapshot.runs.values()}
    added = [Run(b, d, d, "", start=last[b]) for b in backends for d in datasets]
    least, most = plan.changes(plan.beside(order, added)), plan.changes([*order, *added])
    if least >= most:
        return "e"
    options = (
        BACK,
        Option("b", "beside", f"next to the runs of the same server: {_changes(least)}"),
        Option("e", "at the end", _changes(most)),
    )
    said = f"At the end of the queue these runs change the server {_times(most)}."
    return await app.push_screen_wait(Choice("Where in the queue?", (said,), options))


def _changes(count: int) -> str:
    return f"the server changes {_times(count)}"


def _times(count: int) -> str:
    return {0: "not at all", 1: "once"}.get(count, f"{count} times")


# --- servers and the end ---


def chosen_server(app: Gatescope) -> str:
    """The server under Servers' cursor while that pane is in focus; else one that is up; else the
    newest."""
    pane = app.query_one(Servers)
    servers = app.view.snapshot.backends
    up = [name for name, s in servers.items() if s.phase in ("starting", "ready")]
    return pane.selected() if pane.has_focus else (up or list(servers))[-1]


def stop_server(app: Gatescope) -> None:
    app.run_worker(_stop_server(app))


async def _stop_server(app: Gatescope) -> None:
    name = chosen_server(app)
    runs = [
        i
        for i, r in app.view.snapshot.runs.items()
        if r.run.backend == name and r.phase in ("queued", "running")
    ]
    options = (BACK, Option("s", "stop", f"end {name} and cancel its runs"))
    if await app.push_screen_wait(Choice(f"Stop {name}?", (_cancels(runs),), options)) == "s":
        _give(app, control.StopServer(name), f"stopping {name}")


def _cancels(runs: Sequence[str]) -> str:
    """What stopping their server does to these runs."""
    if not runs:
        return "None of its runs is left."
    return f"This cancels {text.runs(len(runs))}: {_listed(runs)}"


def leave(app: Gatescope) -> None:
    if app.view.stage == "running":
        app.run_worker(_ask_leave(app))
    else:
        app.exit(0, message=_farewell(app))


def _farewell(app: Gatescope) -> str | None:
    """The run directory, how far it came, and the next command."""
    run_dir, snapshot = app.session.run_dir, app.session.snapshot
    if run_dir is None:
        return None
    done = f"{run_dir}: {snapshot.count('done')} of {text.runs(len(snapshot.runs))} done"
    name = shlex.quote(str(run_dir))
    if snapshot.finished and not snapshot.count("failed"):
        return f"{done}; write the report with: gatescope report {name}"
    return f"{done}; run what is missing with: gatescope --resume {name}"


async def _ask_leave(app: Gatescope) -> None:
    from tui.screens.ending import Ending

    options = (
        BACK,
        Option("d", "detach", "leave; the run goes on"),
        Option("k", "stop everything", "end the run and its servers, then leave"),
    )
    attach = f"reattach with: gatescope attach {shlex.quote(str(app.view.run_dir))}"
    detaching = f"Detaching leaves the run going; {attach}"
    match await app.push_screen_wait(Choice("Quit?", (detaching,), options, interrupt="k")):
        case "d":
            app.exit(0, message=f"detached; {attach}")
        case "k":
            app.push_screen(Ending(app.session))


def _listed(names: Sequence[str]) -> str:
    if len(names) <= 3:
        return ", ".join(names)
    return f"{', '.join(names[:2])} and {len(names) - 2} more"
