"""The loop: take the next run of the queue, have its backend's server up, run, and so on until the
queue is empty.

The engine draws nothing and decides nothing about screens: it appends events to the run directory
and tells a listener. Commands change the queue, or end what runs; the journal says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from core.backends import forcing
from core.backends import server as servers
from core.backends.launch import Launch, Launcher
from core.backends.server import Server, ServerError
from core.engine.measurement import Measurement, RunError, Target, predicted
from core.errors import GatescopeError
from core.experiment import control, events, plan
from core.experiment.config import Backend, Config
from core.experiment.control import ControlError
from core.experiment.events import AnyEvent
from core.experiment.plan import Run
from core.load import client
from core.load.client import Load, LoadError
from core.recorder.gatescope_recorder.order import VARIABLE, Order
from core.routing.folder import GateFolder
from core.routing.imbalance import WARMUP
from core.rundir.about import ServerNote
from core.rundir.directory import RunDirectory
from core.workload.dataset import Dataset

Listener = Callable[[AnyEvent], None]
MAX_RESTARTS = 2
"""How often a backend's server that died or hung is started again."""


@dataclass(frozen=True, slots=True)
class Serving:
    """A ready server and what it runs."""

    backend: Backend
    server: Server
    target: Target


class Engine:
    """One experiment in one run directory. `listen` is told every event after it has been
    journalled."""

    def __init__(
        self,
        config: Config,
        launcher: Launcher,
        directory: RunDirectory,
        datasets: dict[str, Dataset],
        listen: Listener,
    ) -> None:
        self.config, self.launcher, self.directory = config, launcher, directory
        self._datasets, self._listen = datasets, listen
        self._runs: dict[str, Run] = {}
        self._queue: list[Run] = []
        self._ended: dict[str, str] = {}  # run id → done, failed or cancelled
        self._current: Run | None = None
        self._task: asyncio.Task[None] | None = None  # a server's start, and the current run
        self._serving: Serving | None = None
        self._starts: Counter[str] = Counter()  # of each backend's server
        self._tries: Counter[str] = Counter()  # of each run
        self._order: Order | None = None  # what the servers may be asked to force
        self._main: asyncio.Task[Any] | None = None

    async def run(self, runs: Iterable[Run], ended: Mapping[str, str]) -> bool:
        """Run `runs` but those that have `ended`; true if all are done then. Cancellation ends the
        servers first.

        `ended`: run id → "done", or "cancelled" by command in an earlier session.
        """
        self._runs = {run.id: run for run in runs}
        self._queue = [run for run in self._runs.values() if run.id not in ended]
        self._order = forcing.order(
            self.config, [run.dose for run in self._runs.values() if run.dose]
        )
        self._ended = dict(ended)
        self._main = asyncio.current_task()
        scoring = asyncio.create_task(self._predict())
        try:
            async with control.listening(self.directory.path, self.obey):
                while self._queue:
                    await self._next(self._queue[0])
                    if self._serving and not self._is_wanted(self._serving.backend.name):
                        await self._put_down()
        finally:
            scoring.cancel()
            await self._put_down()
        counts = Counter(self._ended.values())
        self._emit(
            events.ExperimentFinished(
                done=counts["done"], failed=counts["failed"], cancelled=counts["cancelled"]
            )
        )
        return counts["done"] == len(self._runs)

    @property
    def _is_stopping(self) -> bool:
        """Whether the whole experiment is being interrupted: its current run is then queued again
        on resume."""
        return self._main is not None and self._main.cancelling() > 0

    def stop(self, by: str) -> None:
        """Interrupt the whole experiment. The journal says so at once: whoever sent a signal may
        send SIGKILL next (Slurm does), and ending a server takes seconds."""
        assert self._main
        if not self._is_stopping:
            self._main.cancel()
            with contextlib.suppress(OSError):  # a full disk must not keep the servers up
                self._emit(events.ExperimentInterrupted(by=by))

    # --- the loop ---

    async def _next(self, run: Run) -> None:
        """One run, as a task of its own: a command can cancel it, and the loop goes on."""
        self._task = asyncio.create_task(self._step(run))
        try:
            await asyncio.wait([self._task])
        finally:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._queue and self.config.experiment.pause_s:
            await asyncio.sleep(self.config.experiment.pause_s)

    async def _step(self, run: Run) -> None:
        """The run, on the server that is up if it is its backend's, else on a new one."""
        try:
            serving = await self._serve(run.backend)
        except ServerError as error:
            self._emit(
                events.BackendFailed(
                    backend=run.backend, reason=str(error), log_tail=error.log_tail
                )
            )
            for left in [r for r in self._queue if r.backend == run.backend]:
                self._fail(left, str(error))
            return
        if run in self._queue:  # not cancelled while its server came up
            self._queue.remove(run)
            self._current = run
            try:
                await self._measure(serving, run)
            finally:
                self._current = None

    def _is_wanted(self, backend: str) -> bool:
        runs = [*self._queue, self._current] if self._current else self._queue
        return any(run.backend == backend for run in runs)

    async def _measure(self, serving: Serving, run: Run) -> None:
        wanted = self.config.experiment
        self._tries[run.id] += 1
        load = self._load(
            serving, self._dataset(run), segment(run, self._tries[run.id]), wanted.num_prompts
        )
        measurement = Measurement(
            serving.target,
            run,
            load,
            self.directory,
            self._emit,
            wanted.max_error_rate,
            self._order,
        )
        try:
            await measurement.take()
            self._ended[run.id] = "done"
        except asyncio.CancelledError:
            kept = measurement.keep_partial()
            if not self._is_stopping:
                self._ended[run.id] = "cancelled"
                self._emit(events.RunCancelled(run=run.id, completed=kept))
            raise
        except RunError as error:
            is_up = not error.stalled and await serving.server.is_up()
            self._fail(
                run,
                f"{error}; {serving.server.death()}" if serving.server.has_ended else str(error),
            )
            if not is_up:
                await self._put_down()
        except OSError as error:
            self._fail(run, f"its files cannot be written: {error}")

    def _fail(self, run: Run, reason: str) -> None:
        if run in self._queue:
            self._queue.remove(run)
        self._ended[run.id] = "failed"
        self._emit(events.RunFailed(run=run.id, reason=reason))

    def _dataset(self, run: Run) -> Dataset:
        if run.dataset not in self._datasets:
            self._datasets |= plan.read_datasets({run.dataset: Path(run.file)})
        return self._datasets[run.dataset]

    async def _predict(self) -> None:
        """Score the datasets while the first server starts: the queue shows what is expected of
        each run."""
        count = self.config.experiment.num_prompts
        scores = {}
        for index, dataset in list(self._datasets.items()):
            found = await asyncio.to_thread(
                predicted, tuple(p.text for p in dataset.prompts[:count])
            )
            scores[index] = found.score if found else None
        self._emit(events.ScoresPredicted(scores=scores))

    # --- servers ---

    async def _serve(self, name: str) -> Serving:
        """The ready server of a backend. ServerError where it does not come up, or has died too
        often."""
        if (
            self._serving
            and self._serving.backend.name == name
            and not self._serving.server.has_ended
        ):
            return self._serving
        if (
            self._serving and not self._serving.server.has_ended
        ):  # it worked: its next start is no restart
            self._starts[self._serving.backend.name] = 0
        await self._put_down()
        if self._starts[name] > MAX_RESTARTS:
            raise ServerError(
                f"server {name} died {self._starts[name]} times; not started again", []
            )
        self._starts[name] += 1
        backend = next(b for b in self.config.backends if b.name == name)
        gate_logs = self.directory.gate_logs(name).resolve()
        gate_logs.mkdir(parents=True)
        launch = self.launcher.launch(
            backend, self.config.model, gate_logs, self.config.experiment.seed
        )
        if self._order:
            launch = replace(launch, env=launch.env | {VARIABLE: self._order.encode()})
        server = self._start(backend, launch)
        # Known before it is ready, so that whatever ends the wait also ends the server.
        target = Target(
            server.base_url, launch.engine, launch.model, launch.tokenizer, GateFolder(gate_logs)
        )
        self._serving = Serving(backend, server, target)
        await self._ready(self._serving, launch)
        return self._serving

    def _start(self, backend: Backend, launch: Launch) -> Server:
        log = self.directory.path / backend.name / "server.log"
        server = servers.start(
            backend.name,
            launch.command,
            port=backend.port,
            api_key=secrets.token_hex(16),
            log=log,
            env=launch.env,
            owner=self.directory.mark,
        )
        self._emit(
            events.BackendStarting(
                backend=backend.name,
                port=backend.port,
                pid=server.process.pid,
                command=launch.command,
                log=str(log),
            )
        )
        return server

    async def _ready(self, serving: Serving, launch: Launch) -> None:
        """Wait for /health, note what runs, send the warm-up."""
        backend, server = serving.backend, serving.server

        def tell(phase: str) -> None:
            self._emit(events.BackendPhase(backend=backend.name, phase=phase))

        seconds = await server.wait_ready(backend.startup_timeout_s, tell)
        ran = self.launcher.ran(await server.version(), server.log)
        mismatches = self.launcher.mismatches(backend, ran)
        self.directory.note_server(
            backend.name, ServerNote(command=launch.command, ran=ran, mismatches=mismatches)
        )
        if mismatches and self.config.experiment.strict:
            raise ServerError(
                f"asked ≠ ran, and strict = true: {'; '.join(mismatches)}", server.log_tail()
            )
        if self._order and not ran.get("forced_routing", "").startswith("on "):
            why = ran.get("forced_routing", "the server does not say that it can be")
            raise ServerError(
                f"server {backend.name}: routing cannot be forced: {why}", server.log_tail()
            )
        if self.config.experiment.warmup_requests:
            tell("warming up")
            await self._warm_up(serving)
        self._emit(
            events.BackendReady(
                backend=backend.name, seconds=seconds, ran=ran, mismatches=mismatches
            )
        )

    async def _warm_up(self, serving: Serving) -> None:
        prompts = self._dataset(self._queue[0]).prompts
        count = self.config.experiment.warmup_requests
        warmup = Dataset(WARMUP, Path(), tuple(prompts[i % len(prompts)] for i in range(count)))
        loads = [self._load(serving, warmup, WARMUP, count)]
        if lens := await asyncio.to_thread(
            self.launcher.warmup_input_lens, serving.backend, self.config.model
        ):
            shortest = min(prompts, key=lambda prompt: len(prompt.text))
            each = [shortest] * len(
                lens
            )  # one at a time: a prompt alone in its step sets the step's size
            loads.append(
                replace(loads[0], prompts=each, input_len=lens, output_len=1, max_concurrency=1)
            )
        for load in loads:
            await self._send_warm_up(load, serving)

    async def _send_warm_up(self, load: Load, serving: Serving) -> None:
        try:
            records = await client.run(load)
        except (LoadError, httpx.HTTPError) as error:
            reason = f"server {serving.backend.name}: the warm-up could not be sent: {type(error).__name__}: {error}"
            raise ServerError(reason, serving.server.log_tail()) from None
        # HTTP 400: the server does not take this prompt (a longer one than max_model_len). Its run
        # will say so.
        if all(r.error and not r.error.startswith("HTTP 400") for r in records):
            reason = (
                f"server {serving.backend.name}: every warm-up request failed: {records[0].error}"
            )
            raise ServerError(reason, serving.server.log_tail())

    async def _put_down(self) -> None:
        """End the server that is up, if one is, and wait for its whole tree."""
        serving, self._serving = self._serving, None
        if serving is None:
            return
        try:
            self._emit(events.BackendStopping(backend=serving.backend.name))
        finally:  # a full disk must not leave a server behind
            left = await asyncio.shield(asyncio.to_thread(serving.server.stop))
        self._emit(events.BackendStopped(backend=serving.backend.name, left=left))

    def _load(self, serving: Serving, dataset: Dataset, label: str, count: int) -> Load:
        wanted = self.config.experiment
        return Load(
            base_url=serving.target.base_url,
            model=serving.target.model,
            label=label,
            prompts=dataset.prompts[:count],
            api_key=serving.server.api_key,
            input_len=wanted.input_len,
            output_len=wanted.output_len,
            request_rate=wanted.request_rate if label != WARMUP else "inf",
            arrival=wanted.arrival if label != WARMUP else "poisson",
            burstiness=wanted.burstiness,
            ramp_up_s=wanted.ramp_up_s if label != WARMUP else 0.0,
            max_concurrency=wanted.max_concurrency,
            seed=wanted.seed,
            stall_timeout_s=wanted.stall_timeout_s,
            workers=wanted.load_workers,
            slo=wanted.slo.limits,
        )

    # --- commands ---

    def obey(self, command: control.Command) -> None:
        """Do what a view asks for. ControlError where that makes no sense now."""
        match command:
            case control.Cancel():
                self._cancel(self._known(command.runs))
            case control.Retry():
                self._retry(self._known(command.runs))
            case control.Move():
                self._move(self._known(command.runs), command.before)
            case control.Add():
                self._add(command)
            case control.StopServer():
                runs = [
                    r
                    for r in self._runs.values()
                    if r.backend == command.backend and r.id not in self._ended
                ]
                if not runs:
                    raise ControlError(f"{command.backend} has nothing to run, so no server")
                self._cancel(runs)
            case control.Stop():
                self.stop("stop")

    def _known(self, ids: list[str]) -> list[Run]:
        if missing := [i for i in ids if i not in self._runs]:
            raise ControlError(f"there is no run {missing[0]}")
        return [self._runs[i] for i in dict.fromkeys(ids)]

    def _cancel(self, runs: list[Run]) -> None:
        if over := [r for r in runs if r.id in self._ended]:
            raise ControlError(f"{over[0].id} is {self._ended[over[0].id]} already")
        for run in runs:
            if run != self._current:
                self._queue.remove(run)
                self._ended[run.id] = "cancelled"
                self._emit(events.RunCancelled(run=run.id))
        starts_for_nothing = self._serving and not self._is_wanted(self._serving.backend.name)
        if self._task and (self._current in runs or starts_for_nothing):
            self._task.cancel()

    def _retry(self, runs: list[Run]) -> None:
        if wrong := [r for r in runs if self._ended.get(r.id) not in ("failed", "cancelled")]:
            raise ControlError(
                f"{wrong[0].id} is {self._ended.get(wrong[0].id, 'still to come')}: nothing to retry"
            )
        for run in runs:
            del self._ended[run.id]
            self._starts[run.backend] = 0
            self._queue.append(run)
            self._emit(events.RunRequeued(run=run.id))

    def _move(self, runs: list[Run], before: str) -> None:
        if wrong := [r for r in runs if r not in self._queue]:
            raise ControlError(f"{wrong[0].id} is not queued: only queued runs move")
        rest = [r for r in self._queue if r not in runs]
        place = next((i for i, r in enumerate(rest) if r.id == before), len(rest))
        self._queue = [*rest[:place], *runs, *rest[place:]]
        self._emit(events.QueueReordered(runs=[r.id for r in self._queue]))

    def _add(self, command: control.Add) -> None:
        try:
            added = plan.again(self.config, self._runs.keys(), command.datasets, command.backends)
        except GatescopeError as error:
            raise ControlError(str(error)) from None
        self._runs |= {r.id: r for r in added}
        self._queue += added
        self._emit(events.RunsAdded(runs=added))

    def _emit(self, event: AnyEvent) -> None:
        self.directory.append(event)
        self._listen(event)


def segment(run: Run, tried: int) -> str:
    """The run's label in the gate log; a second try has its own, since the first one's steps stay
    in the log."""
    return run.label if tried == 1 else f"{run.label}-try{tried}"
