"""What keys ask of the engine: start, cancel, order, add, stop; each asks first where it is hard to
reverse."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from textual import work
from textual.app import App

from core.errors import GatescopeError
from core.experiment import control
from core.experiment.control import Command, ControlError
from tui.model.view import View
from tui.screens.choice import Choice, Option
from tui.widgets.queue import Queue
from tui.widgets.servers import Servers

if TYPE_CHECKING:
    from tui.model.session import Session

BACK = Option("esc", "back", "nothing changes")


class Commands(App[int]):
    """The part of the App that drives the engine."""

    session: Session
    view: View

    def say(self, text: str, role: str = "note") -> None:
        raise NotImplementedError

    # --- run ---

    def do_run(self) -> None:
        self._start()

    def _start(self, *, retry_cancelled: bool = False) -> None:
        self.say("starting the engine …")
        start = partial(self._in_thread, retry_cancelled)
        self.run_worker(start, thread=True, group="start", exclusive=True)

    def _in_thread(self, retry_cancelled: bool) -> None:
        try:
            run_dir = self.session.start(retry_cancelled=retry_cancelled)
        except GatescopeError as error:
            self.session.problem = str(error)
            self.call_from_thread(self.say, f"not started: {error}", "bad")
        else:
            self.call_from_thread(self.say, f"running in {run_dir}")

    def send(self, command: Command, done: str) -> None:
        """Give a command in a thread; say `done`, or why not."""
        self.run_worker(lambda: self._send(command, done), thread=True)

    def _send(self, command: Command, done: str) -> None:
        try:
            self.session.send(command)
        except ControlError as error:
            self.call_from_thread(self.say, f"not done: {error}", "bad")
        else:
            self.call_from_thread(self.say, done)

    # --- the queue ---

    def do_cancel(self) -> str | None:
        runs = self._runs_meant()
        if not runs:
            return "no run is in progress; put Queue's cursor on a queued one"
        if self.view.running in runs:
            self._ask_cancel(runs)
        else:
            self.send(control.Cancel(runs), f"cancelled: {_listed(runs)}; R queues them again")
        return None

    def _runs_meant(self) -> list[str]:
        """Of the marked runs, else the one under Queue's cursor, else the one running: those that
        can be cancelled."""
        queue = self.query_one(Queue)
        phases = {i: r.phase for i, r in self.view.snapshot.runs.items()}
        chosen = queue.chosen() if queue.marked or queue.has_focus else []
        able = [i for i in chosen if phases[i] in ("queued", "running")]
        return able or [self.view.running] * bool(self.view.running)

    @work
    async def _ask_cancel(self, runs: list[str]) -> None:
        text = "Requests in flight are dropped; what has finished is kept as a partial result."
        options = (BACK, Option("x", "cancel", f"end {_listed(runs)} here"))
        if await self.push_screen_wait(Choice(f"Cancel {_listed(runs)}?", (text,), options)) == "x":
            self.send(control.Cancel(runs), f"cancelled: {_listed(runs)}")

    def do_next(self) -> None:
        self._ask_cancel([self.view.running])

    def do_retry(self) -> str | None:
        marked = self.query_one(Queue).marked
        ended = [
            i for i, r in self.view.snapshot.runs.items() if r.phase in ("failed", "cancelled")
        ]
        runs = [i for i in ended if i in marked] if marked else ended
        if not runs:
            return "none of the marked runs has failed or was cancelled"
        if self.view.stage != "running" and set(runs) != set(ended):
            return "no engine is running: without marks this starts it, with all that failed or were cancelled"
        if self.view.stage != "running":
            self._start(retry_cancelled=True)
            return None
        self.send(control.Retry(runs), f"queued again: {_listed(runs)}")
        return None

    def do_later(self) -> str | None:
        return self._move(1)

    def do_sooner(self) -> str | None:
        return self._move(-1)

    def _move(self, by: int) -> str | None:
        """Put the chosen queued runs one place further down or up among the queued ones."""
        queue = self.query_one(Queue)
        queued = [i for i, r in self.view.snapshot.runs.items() if r.phase == "queued"]
        chosen = [i for i in queue.chosen() if i in queued]
        if not chosen:
            return "only queued runs can be moved; put Queue's cursor on one"
        rest = [i for i in queued if i not in chosen]
        place = sum(queued.index(i) < queued.index(chosen[0]) for i in rest) + by
        before = rest[place] if 0 <= place < len(rest) else "" if place > 0 else (rest or [""])[0]
        self.send(control.Move(chosen, before), f"moved: {_listed(chosen)}")
        queue.action_move(by)
        return None

    @work
    async def do_add(self) -> None:
        from tui.screens.picker import Picker

        try:
            found = self.session.datasets()
        except GatescopeError as error:
            self.say(str(error), "bad")
            return
        chosen = await self.push_screen_wait(Picker(found))
        if chosen:
            backends = list(self.view.backends)
            self.send(
                control.Add(chosen, backends), f"queued at {_listed(backends)}: {_listed(chosen)}"
            )

    # --- servers and the end ---

    def chosen_server(self) -> str:
        """The one under the cursor of Servers where that is in focus; else one that is up; else the
        newest."""
        pane = self.query_one(Servers)
        servers = self.view.snapshot.backends
        up = [name for name, s in servers.items() if s.phase in ("starting", "ready")]
        return pane.selected() if pane.has_focus else (up or list(servers))[-1]

    @work
    async def do_stop_server(self) -> None:
        name = self.chosen_server()
        runs = [
            i
            for i, r in self.view.snapshot.runs.items()
            if r.run.backend == name and r.phase in ("queued", "running")
        ]
        text = (
            f"This cancels {len(runs)} runs: {_listed(runs)}" if runs else "No run of it is left."
        )
        options = (BACK, Option("s", "stop", f"end {name} and cancel its runs"))
        if await self.push_screen_wait(Choice(f"Stop {name}?", (text,), options)) == "s":
            self.send(control.StopServer(name), f"stopping {name}")

    @work
    async def do_quit(self) -> None:
        if self.view.stage != "running":
            self.exit(0)
            return
        options = (
            BACK,
            Option("d", "detach", "leave; the run goes on"),
            Option("k", "stop everything", "end the run and its servers, then leave"),
        )
        text = f"Detached, the run goes on; take it up again with: gatescope attach {self.view.run_dir}"
        match await self.push_screen_wait(Choice("Quit?", (text,), options, interrupt="k")):
            case "d":
                self.exit(
                    0,
                    message=f"detached; take it up again with: gatescope attach {self.view.run_dir}",
                )
            case "k":
                self._stop_and_leave()

    def _stop_and_leave(self) -> None:
        from tui.screens.ending import Ending

        self.push_screen(Ending(self.session))


def _listed(names: Sequence[str]) -> str:
    return (
        ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"
    )
