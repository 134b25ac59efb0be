"""The loop: take the next run of the queue, have its backend's server up, measure, and so on until
the queue is empty.

The engine draws nothing: it appends events to the run directory and passes each to a listener.
Commands change the queue, or end what runs; both are journalled.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from core.backends import forcing
from core.backends.launch import Launcher
from core.backends.server import ServerError
from core.engine import servers
from core.engine.measurement import Measurement, RunError, predicted
from core.engine.queue import Queue
from core.engine.servers import Kept, Servers, Serving
from core.errors import DatasetError
from core.experiment import control, events, plan
from core.experiment.config import Config
from core.experiment.control import ControlError
from core.experiment.events import AnyEvent
from core.experiment.plan import Run
from core.recorder.gatescope_recorder.order import Order
from core.routing import recording as recorded
from core.rundir.directory import RunDirectory
from core.workload.dataset import Dataset

Listener = Callable[[AnyEvent], None]


class Engine:
    """One experiment in one run directory. `listen` gets every event after it has been
    journalled; `kept`: where a server comes from, and is left, that other directories need too."""

    def __init__(
        self,
        config: Config,
        launcher: Launcher,
        directory: RunDirectory,
        datasets: dict[str, Dataset],
        listen: Listener,
        kept: Kept | None = None,
    ) -> None:
        self.config, self.launcher, self.directory = config, launcher, directory
        self._datasets, self._listen, self._kept = datasets, listen, kept
        self._order: Order | None = None  # the routing that servers may be asked to force
        self._queue: Queue  # this and the servers: once it runs
        self._servers: Servers
        self._task: asyncio.Task[None] | None = None  # a server's start, and the current run
        self._main: asyncio.Task[Any] | None = None
        self._tries: Counter[str] = Counter()  # of each run

    async def run(self, runs: Iterable[Run], ended: Mapping[str, str]) -> bool:
        """Run those of `runs` that have not `ended`; true if all are done then. Cancellation ends
        the servers first.

        `ended`: run id → "done", or "cancelled" by command in an earlier session.
        """
        self._queue = queue = Queue(runs, ended, self._emit)
        imposed = [run.imposed for run in queue.runs.values() if run.imposed]
        recording = (self.directory.path / recorded.FOLDER).resolve()
        self._order = forcing.order(self.config, imposed, str(recording))
        self._servers = Servers(
            self.config, self.launcher, self.directory, self._order, self._emit, self._kept
        )
        self._main = asyncio.current_task()
        scoring = asyncio.create_task(self._predict())
        try:
            async with control.listening(self.directory.path, self.obey):
                await self._loop()
        finally:
            scoring.cancel()
            await self._servers.put_down()
        counts = Counter(queue.ended.values())
        self._emit(
            events.ExperimentFinished(
                done=counts["done"], failed=counts["failed"], cancelled=counts["cancelled"]
            )
        )
        return counts["done"] == len(queue.runs)

    @property
    def _is_stopping(self) -> bool:
        """Whether the whole experiment is being interrupted: its current run is then queued again
        on resume."""
        return self._main is not None and self._main.cancelling() > 0

    def stop(self, by: str) -> None:
        """Interrupt the whole experiment. The journal says so at once: whatever sent a signal may
        send SIGKILL next (Slurm does), and ending a server takes seconds."""
        assert self._main
        if not self._is_stopping:
            self._main.cancel()
            with contextlib.suppress(OSError):  # a full disk must not keep the servers up
                self._emit(events.ExperimentInterrupted(by=by))

    # --- the loop ---

    async def _loop(self) -> None:
        while self._queue.waiting:
            await self._next(self._queue.waiting[0])
            if self._is_idle():
                await self._servers.leave()

    def _is_idle(self) -> bool:
        """Whether a server is up that has no run left."""
        up = self._servers.up
        return up is not None and not self._queue.unfinished(up.backend.name, up.start)

    async def _next(self, run: Run) -> None:
        """One run, as a task of its own: a command can cancel it, and the loop goes on."""
        self._task = asyncio.create_task(self._step(run))
        try:
            await asyncio.wait([self._task])
        finally:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._queue.note_cancelled()  # the run ended by itself before its cancellation
        if self._queue.waiting and self.config.experiment.pause_s:
            await asyncio.sleep(self.config.experiment.pause_s)

    async def _step(self, run: Run) -> None:
        """The run, on the server that is up if it is its start's, else on a new one."""
        try:
            prompts = self._dataset(run).prompts
            serving = await self._servers.serve(run.backend, run.start, prompts)
        except ServerError as error:
            self._give_up(run.backend, error)
            return
        except DatasetError as error:  # it was changed since the plan was made
            self._queue.fail(run, str(error))
            return
        if run in self._queue.waiting:  # not cancelled while its server started
            self._queue.start(run)
            try:
                await self._measure(serving, run)
            finally:
                self._queue.current = None

    def _give_up(self, backend: str, error: ServerError) -> None:
        """Fail all runs of a backend whose server does not come up."""
        reason = str(error)
        self._emit(events.BackendFailed(backend=backend, reason=reason, log_tail=error.log_tail))
        for run in [r for r in self._queue.waiting if r.backend == backend]:
            self._queue.fail(run, reason)

    async def _measure(self, serving: Serving, run: Run) -> None:
        measurement = self._measurement(serving, run)
        try:
            await measurement.take()
            self._queue.end(run, "done")
        except asyncio.CancelledError:
            kept = measurement.keep_partial()
            if not self._is_stopping:
                self._queue.end_cancelled(run, kept)
            raise
        except RunError as error:
            server = serving.server
            is_up = not error.stalled and await server.is_up()
            reason = str(error)
            if server.has_ended:
                reason = f"{error}; {server.death()}"
            elif not is_up and (cause := server.complaint()):
                reason = f"{error}; server {server.name} is up no more: {cause}"
            self._queue.fail(run, reason)
            if not is_up:
                await self._servers.put_down()
        except OSError as error:
            self._queue.fail(run, f"its files cannot be written: {error}")
        except Exception as error:  # whatever it is, the runs behind it go on
            self._queue.fail(run, f"{type(error).__name__}: {error}")

    def _measurement(self, serving: Serving, run: Run) -> Measurement:
        wanted = self.config.experiment
        self._tries[run.id] += 1
        prompts = self._dataset(run).prompts[: wanted.num_prompts]
        load = servers.load(wanted, serving, prompts, segment(run, self._tries[run.id]))
        return Measurement(
            serving.target,
            run,
            load,
            self.directory,
            self._emit,
            wanted.max_error_rate,
            self._order,
        )

    def _dataset(self, run: Run) -> Dataset:
        if run.dataset not in self._datasets:
            self._datasets |= plan.read_datasets({run.dataset: Path(run.file)})
        return self._datasets[run.dataset]

    async def _predict(self) -> None:
        """Score the datasets while the first server starts, so that the queue shows what to expect
        of each run."""
        count = self.config.experiment.num_prompts
        scores = {}
        for index, dataset in list(self._datasets.items()):
            texts = tuple(p.text for p in dataset.prompts[:count])
            found = await asyncio.to_thread(predicted, texts)
            scores[index] = found.score if found else None
        self._emit(events.ScoresPredicted(scores=scores))

    # --- commands ---

    def obey(self, command: control.Command) -> None:
        """Do what a view asks for. ControlError where that makes no sense now."""
        queue = self._queue
        match command:
            case control.Cancel():
                self._cancel(queue.known(command.runs))
            case control.Retry():
                runs = queue.known(command.runs)
                queue.retry(runs)
                for run in runs:
                    self._servers.forgive(run.backend)
            case control.Move():
                queue.move(queue.known(command.runs), command.before)
            case control.Add():
                queue.add(self.config, command.datasets, command.backends, beside=command.beside)
            case control.StopServer():
                runs = queue.unfinished(command.backend)
                if not runs:
                    raise ControlError(f"{command.backend} has nothing to run, so no server")
                self._cancel(runs)
            case control.Stop():
                self.stop("stop")

    def _cancel(self, runs: list[Run]) -> None:
        self._queue.cancel(runs)
        if self._task and (self._queue.current in runs or self._is_idle()):
            self._task.cancel()

    def _emit(self, event: AnyEvent) -> None:
        self.directory.append(event)
        self._listen(event)


def segment(run: Run, tried: int) -> str:
    """The run's label in the gate log; a second try has its own, since the first one's steps stay
    in the log."""
    return run.label if tried == 1 else f"{run.label}-try{tried}"
