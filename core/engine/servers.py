"""The server that is up, at most one: started, waited for, warmed up, put down, restarted."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
from msgspec import structs

from core.backends import builtin, ports, server
from core.backends.launch import Launch, Launcher
from core.backends.server import Server, ServerError
from core.engine.measurement import Target
from core.errors import GateLogError, LoadError
from core.experiment import events
from core.experiment.config import Config
from core.experiment.events import AnyEvent
from core.experiment.tables import Backend, Experiment
from core.load import client
from core.load.client import Load
from core.recorder.gatescope_recorder.about import SUFFIX
from core.recorder.gatescope_recorder.order import VARIABLE, Order
from core.routing import folder
from core.routing.folder import GateFolder
from core.routing.imbalance import WARMUP
from core.rundir.about import ServerNote
from core.rundir.directory import RunDirectory
from core.workload.dataset import Prompt

MAX_RESTARTS = 2
"""How often a backend's server that died or hung is started again."""
LOG_WAIT_S = 3.0  # that a kept server may take to go on in another folder


@dataclass(frozen=True, slots=True)
class Serving:
    """A server, which of its backend's starts it is, the target that it is to its runs, and what
    temperature = "auto" stands for at it."""

    backend: Backend
    start: int
    server: Server
    target: Target
    temperature: float
    note: ServerNote | None = None  # once it is ready


@dataclass(slots=True)
class Kept:
    """The server that stays up from one run directory to the next, where both need the same. It
    logs into `link`, a symbolic link to the folder of the run directory that it serves; `mark` is
    what the marks of its processes begin with."""

    link: Path
    mark: str
    serving: Serving | None = None

    def lead_to(self, folder: Path) -> None:
        """What the server records from now on goes into `folder`."""
        new = self.link.with_name(f"{self.link.name}.new")
        new.unlink(missing_ok=True)
        new.symlink_to(folder)
        os.replace(new, self.link)

    def take(self) -> Serving | None:
        """The server that was left up, if it is up still."""
        if self.serving and self.serving.server.has_ended:
            self.put_down()
        serving, self.serving = self.serving, None
        return serving

    def put_down(self) -> None:
        """End the server that was left up, if one was, and wait for its whole tree."""
        serving, self.serving = self.serving, None
        if serving:
            serving.server.stop()
        self.link.unlink(missing_ok=True)


class Servers:
    """`up` is the server that is up or starting. `order` is the routing that a server may be asked
    to force. With `kept`, the first server is the one left there, and the last is left there."""

    def __init__(
        self,
        config: Config,
        launcher: Launcher,
        directory: RunDirectory,
        order: Order | None,
        emit: Callable[[AnyEvent], None],
        kept: Kept | None = None,
    ) -> None:
        self._config, self._launcher, self._directory = config, launcher, directory
        self._order, self._emit, self._kept = order, emit, kept
        # How often each backend's server of a start was started, since it last worked.
        self._tries: Counter[tuple[str, int]] = Counter()
        self.up: Serving | None = None

    def forgive(self, backend: str) -> None:
        """Forget how often the backend's servers died."""
        for key in [key for key in self._tries if key[0] == backend]:
            del self._tries[key]

    async def serve(self, name: str, number: int, prompts: Sequence[Prompt]) -> Serving:
        """The backend's ready server of that start. A new one is warmed up with `prompts`.

        ServerError if it does not become ready, or has died too often.
        """
        if self.up and not self.up.server.has_ended:
            if (self.up.backend.name, self.up.start) == (name, number):
                return self.up
            self.forgive(self.up.backend.name)  # it worked, so its next start is no restart
        await self.put_down()
        if self._kept and (left := self._kept.take()):
            return await self._take(self._kept, left, prompts)
        if self._tries[name, number] > MAX_RESTARTS:
            died = f"server {name} died {self._tries[name, number]} times; not started again"
            raise ServerError(died, [])
        self._tries[name, number] += 1
        backend = next(b for b in self._config.backends if b.name == name)
        if backend.port == 0:
            backend = structs.replace(backend, port=ports.free())
        launch, logs = self._launch(backend)
        started = self._start(backend, number, launch)
        target = Target(
            started.base_url,
            launch.engine,
            launch.model,
            launch.tokenizer,
            logs,
            launch.env,
            0 if builtin.is_label(launch.engine) else backend.ranks,
        )
        # Known before it is ready, so that whatever ends the wait also ends the server.
        self.up = Serving(backend, number, started, target, launch.temperature)
        self._emit(_starting(self.up, launch.command))
        note = await self._ready(self.up, launch, prompts)
        self.up = replace(self.up, note=note)
        return self.up

    async def leave(self) -> None:
        """Leave the server that is up to the next run directory, where there may be one; else put
        it down."""
        if not (self._kept and self.up and self.up.note) or self.up.server.has_ended:
            await self.put_down()
            return
        self._kept.serving, self.up = self.up, None
        self._emit(events.BackendStopped(backend=self._kept.serving.backend.name, kept=True))

    async def put_down(self) -> None:
        """End the server that is up, if one is, and wait for its whole tree."""
        serving, self.up = self.up, None
        if serving is None:
            return
        try:
            self._emit(events.BackendStopping(backend=serving.backend.name))
        finally:  # a full disk must not leave a server behind
            left = await asyncio.shield(asyncio.to_thread(serving.server.stop))
        self._emit(events.BackendStopped(backend=serving.backend.name, left=left))

    async def _take(self, kept: Kept, left: Serving, prompts: Sequence[Prompt]) -> Serving:
        """The server that was left up, from now on this run directory's: warmed up anew, since what
        it is sent may be of other lengths. ServerError as `serve`."""
        note = left.note
        assert note
        logs = self._new_logs(left.backend)
        for file in left.target.log.folder.glob(f"*{SUFFIX}"):
            shutil.copy(file, logs)
        kept.lead_to(logs)
        target = replace(left.target, log=GateFolder(logs))
        self.up = replace(left, target=target, note=None)
        self._directory.note_server(left.backend.name, note)
        self._emit(_starting(self.up, note.command, kept=True))
        await self._warm_up(self.up, prompts)
        await self._until_logged(target.log)
        self._emit(_ready(left.backend.name, 0.0, note))
        self.up = replace(self.up, note=note)
        return self.up

    async def _until_logged(self, log: GateFolder) -> None:
        """Wait until every rank writes into the new folder."""
        deadline = time.monotonic() + LOG_WAIT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(GateLogError, OSError):
                log.read()
                return
            await asyncio.sleep(0.02)

    def _new_logs(self, backend: Backend) -> Path:
        logs = self._directory.gate_logs(backend.name).resolve()
        logs.mkdir(parents=True, exist_ok=True)
        return logs

    def _launch(self, backend: Backend) -> tuple[Launch, GateFolder]:
        logs, config = self._new_logs(backend), self._config
        folder = logs
        if self._kept:
            self._kept.lead_to(logs)
            folder = self._kept.link
        launch = self._launcher.launch(backend, config.model, folder, config.experiment.seed)
        if self._order:
            launch = replace(launch, env=launch.env | {VARIABLE: self._order.encode()})
        return launch, GateFolder(logs)

    def _start(self, backend: Backend, number: int, launch: Launch) -> Server:
        log = self._directory.path / backend.name / "server.log"
        return server.start(
            backend.name,
            launch.command,
            port=backend.port,
            api_key=secrets.token_hex(16),
            log=log,
            env=launch.env,
            owner=self._kept.mark if self._kept else self._directory.mark,
        )

    async def _ready(
        self, serving: Serving, launch: Launch, prompts: Sequence[Prompt]
    ) -> ServerNote:
        """Wait for /health, note what runs, send the warm-up."""
        backend, name = serving.backend, serving.backend.name

        def tell(phase: str) -> None:
            self._emit(events.BackendPhase(backend=name, phase=phase))

        seconds = await serving.server.wait_ready(backend.startup_timeout_s, tell)
        up = serving.server
        ran = self._launcher.ran(
            await up.version(), up.log, up.log_start, serving.target.log.folder
        )
        if missing := folder.missing_logs(serving.target.log.folder):
            ran |= {"missing_logs": ", ".join(missing)}
        mismatches = self._launcher.mismatches(backend, ran)
        kernel = folder.kernel(serving.target.log.folder)
        noted = ServerNote(command=launch.command, ran=ran, mismatches=mismatches, kernel=kernel)
        self._directory.note_server(name, noted)
        if wrong := self._unusable(name, ran, mismatches):
            raise ServerError(wrong, serving.server.log_tail())
        if self._config.experiment.warmup_requests:
            tell("warming up")
            if skipped := self._launcher.warmup_skipped(backend, self._config.model):
                tell(skipped)
            await self._warm_up(serving, prompts)
            await self._compile(serving, prompts)
        self._emit(_ready(name, seconds, noted))
        return noted

    def _unusable(self, name: str, ran: dict[str, str], mismatches: Sequence[str]) -> str:
        """Why a server that came up cannot be measured; empty if it can."""
        if mismatches and self._config.experiment.strict:
            return f"not running as requested, and strict = true: {'; '.join(mismatches)}"
        forced = ran.get("forced_routing", "the server does not say that it can be")
        if self._order and not forced.startswith("on "):
            return f"server {name}: routing cannot be forced: {forced}"
        return ""

    async def _warm_up(self, serving: Serving, prompts: Sequence[Prompt]) -> None:
        count = self._config.experiment.warmup_requests
        sent = [prompts[i % len(prompts)] for i in range(count)]
        await self._send(self._at_once(serving, sent), serving)

    async def _compile(self, serving: Serving, prompts: Sequence[Prompt]) -> None:
        """Send prompts of the lengths at which the server compiles a kernel."""
        if lens := await asyncio.to_thread(
            self._launcher.warmup_input_lens, serving.backend, self._config.model
        ):
            shortest = min(prompts, key=lambda prompt: len(prompt.text))
            at_once = self._at_once(serving, [shortest] * len(lens))
            # One at a time: a prompt that is alone in its step sets the step's size.
            alone = replace(at_once, input_len=lens, output_len=1, max_concurrency=1)
            await self._send(alone, serving)

    def _at_once(self, serving: Serving, prompts: Sequence[Prompt]) -> Load:
        return replace(
            load(self._config.experiment, serving, prompts, WARMUP),
            request_rate="inf",
            arrival="poisson",
            ramp_up_s=0.0,
        )

    async def _send(self, warm_up: Load, serving: Serving) -> None:
        name, tail = serving.backend.name, serving.server.log_tail
        try:
            records = await client.run(warm_up)
        except (LoadError, httpx.HTTPError) as error:
            reason = f"the warm-up could not be sent: {type(error).__name__}: {error}"
            raise ServerError(f"server {name}: {reason}", tail()) from None
        # HTTP 400: this prompt is refused (it may exceed max_model_len). Its run will say so.
        if all(r.error and not r.error.startswith("HTTP 400") for r in records):
            reason = f"every warm-up request failed: {records[0].error}"
            raise ServerError(f"server {name}: {reason}", tail())


def _starting(
    serving: Serving, command: Sequence[str], *, kept: bool = False
) -> events.BackendStarting:
    return events.BackendStarting(
        backend=serving.backend.name,
        port=serving.backend.port,
        pid=serving.server.process.pid,
        command=list(command),
        log=str(serving.server.log),
        start=serving.start,
        kept=kept,
    )


def _ready(name: str, seconds: float, note: ServerNote) -> events.BackendReady:
    return events.BackendReady(
        backend=name, seconds=seconds, ran=note.ran, mismatches=note.mismatches
    )


def load(wanted: Experiment, serving: Serving, prompts: Sequence[Prompt], label: str) -> Load:
    """`prompts` sent at a server as the experiment asks; `label` is their segment in the gate
    log."""
    temperature = serving.temperature if wanted.temperature == "auto" else wanted.temperature
    return Load(
        base_url=serving.target.base_url,
        model=serving.target.model,
        label=label,
        prompts=prompts,
        api_key=serving.server.api_key,
        input_len=wanted.input_len,
        output_len=wanted.output_len,
        temperature=temperature,
        request_rate=wanted.request_rate,
        arrival=wanted.arrival,
        trace_unit=wanted.trace_unit,
        burstiness=wanted.burstiness,
        ramp_up_s=wanted.ramp_up_s,
        max_concurrency=wanted.max_concurrency,
        seed=wanted.seed,
        stall_timeout_s=wanted.stall_timeout_s,
        workers=wanted.load_workers,
        slo=wanted.slo.limits,
    )
