"""The queue: the runs of one experiment in the order in which they run, and how each one ended."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from core.errors import GatescopeError
from core.experiment import events, plan
from core.experiment.config import Config
from core.experiment.control import ControlError
from core.experiment.events import AnyEvent
from core.experiment.plan import Run


class Queue:
    """Every change is emitted as an event. The commands of a view (`cancel`, `retry`, `move`,
    `add`) raise ControlError where they make no sense now."""

    def __init__(
        self, runs: Iterable[Run], ended: Mapping[str, str], emit: Callable[[AnyEvent], None]
    ) -> None:
        self.runs = {run.id: run for run in runs}
        self.ended = dict(ended)  # run id → done, failed or cancelled
        self.waiting = [run for run in self.runs.values() if run.id not in ended]
        self.current: Run | None = None
        self._cancelled: list[str] = []  # cancelled, and not yet in the journal
        self._emit = emit

    def known(self, ids: Sequence[str]) -> list[Run]:
        """The runs with these ids, each once."""
        if missing := [i for i in ids if i not in self.runs]:
            raise ControlError(f"there is no run {missing[0]}")
        return [self.runs[i] for i in dict.fromkeys(ids)]

    def unfinished(self, backend: str, start: int | None = None) -> list[Run]:
        """The current run and the waiting ones of a backend, or of one of its starts."""
        return [
            run
            for run in self.runs.values()
            if run.backend == backend and start in (None, run.start) and run.id not in self.ended
        ]

    # --- the loop ---

    def start(self, run: Run) -> None:
        """Make a waiting run the current one."""
        self.waiting.remove(run)
        self.current = run

    def end(self, run: Run, how: str) -> None:
        """Note how a run ended; it no longer waits."""
        if run in self.waiting:
            self.waiting.remove(run)
        self.ended[run.id] = how

    def fail(self, run: Run, reason: str) -> None:
        self.end(run, "failed")
        self._emit(events.RunFailed(run=run.id, reason=reason))

    def end_cancelled(self, run: Run, completed: int) -> None:
        """End the current run by command, with what was cancelled by the same one."""
        self.end(run, "cancelled")
        others, self._cancelled = self._cancelled, []
        self._emit(events.RunCancelled(run=run.id, completed=completed, others=others))

    def note_cancelled(self) -> None:
        """Emit what no event has said yet of the runs that were cancelled while they waited."""
        if self._cancelled:
            ids, self._cancelled = self._cancelled, []
            self._emit(events.RunCancelled(run=ids[0], others=ids[1:]))

    # --- commands: one event each ---

    def cancel(self, runs: Sequence[Run]) -> None:
        """Cancel those of `runs` that wait. Ending the current run is up to the caller; its event
        then names the others too."""
        if over := [r for r in runs if r.id in self.ended]:
            raise ControlError(f"{over[0].id} is {self.ended[over[0].id]} already")
        for run in runs:
            if run != self.current:
                self.end(run, "cancelled")
                self._cancelled.append(run.id)
        if self.current not in runs:
            self.note_cancelled()

    def retry(self, runs: Sequence[Run]) -> None:
        """Queue failed and cancelled runs again, at the end."""
        if wrong := [r for r in runs if self.ended.get(r.id) not in ("failed", "cancelled")]:
            how = self.ended.get(wrong[0].id, "still to come")
            raise ControlError(f"{wrong[0].id} is {how}: nothing to retry")
        self.note_cancelled()
        for run in runs:
            del self.ended[run.id]
            self.waiting.append(run)
        if ids := [run.id for run in runs]:
            self._emit(events.RunRequeued(run=ids[0], others=ids[1:]))

    def move(self, runs: Sequence[Run], before: str) -> None:
        """Put waiting runs before another one; at the end if `before` does not wait."""
        if wrong := [r for r in runs if r not in self.waiting]:
            raise ControlError(f"{wrong[0].id} is not queued: only queued runs move")
        rest = [r for r in self.waiting if r not in runs]
        place = next((i for i, r in enumerate(rest) if r.id == before), len(rest))
        self.waiting = [*rest[:place], *runs, *rest[place:]]
        self._emit(events.QueueReordered(runs=[r.id for r in self.waiting]))

    def add(
        self, config: Config, datasets: Sequence[str], backends: Sequence[str], *, beside: bool
    ) -> None:
        """Queue one more run of each of these datasets at each of these backends: at the end, or
        beside those of the same server."""
        try:
            added = plan.again(config, self.runs, datasets, backends)
        except GatescopeError as error:
            raise ControlError(str(error)) from None
        self.runs |= {r.id: r for r in added}
        ahead = [self.current] if self.current else []
        order = plan.beside([*ahead, *self.waiting], added)[len(ahead) :]
        self.waiting += added
        self._emit(events.RunsAdded(runs=added))
        if beside and order != self.waiting:
            self.waiting = order
            self._emit(events.QueueReordered(runs=[r.id for r in order]))
