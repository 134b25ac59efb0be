"""The server that is up, at most one: started, waited for, warmed up, put down, restarted."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import httpx
from msgspec import structs

from core.backends import builtin, ports, server
from core.backends.launch import Launch, Launcher
from core.backends.server import Server, ServerError
from core.engine.measurement import Target
from core.errors import LoadError
from core.experiment import events
from core.experiment.config import Config
from core.experiment.events import AnyEvent
from core.experiment.tables import Backend, Experiment
from core.load import client
from core.load.client import Load
from core.recorder.gatescope_recorder.order import VARIABLE, Order
from core.routing import folder
from core.routing.folder import GateFolder
from core.routing.imbalance import WARMUP
from core.rundir.about import ServerNote
from core.rundir.directory import RunDirectory
from core.workload.dataset import Prompt

MAX_RESTARTS = 2
"""How often a backend's server that died or hung is started again."""


@dataclass(frozen=True, slots=True)
class Serving:
    """A server, which of its backend's starts it is, the target that it is to its runs, and what
    temperature = "auto" stands for at it."""

    backend: Backend
    start: int
    server: Server
    target: Target
    temperature: float


class Servers:
    """`up` is the server that is up or starting. `order` is the routing that a server may be asked
    to force."""

    def __init__(
        self,
        config: Config,
        launcher: Launcher,
        directory: RunDirectory,
        order: Order | None,
        emit: Callable[[AnyEvent], None],
    ) -> None:
        self._config, self._launcher, self._directory = config, launcher, directory
        self._order, self._emit = order, emit
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
        await self._ready(self.up, launch, prompts)
        return self.up

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

    def _launch(self, backend: Backend) -> tuple[Launch, GateFolder]:
        logs = self._directory.gate_logs(backend.name).resolve()
        logs.mkdir(parents=True)
        config = self._config
        launch = self._launcher.launch(backend, config.model, logs, config.experiment.seed)
        if self._order:
            launch = replace(launch, env=launch.env | {VARIABLE: self._order.encode()})
        return launch, GateFolder(logs)

    def _start(self, backend: Backend, number: int, launch: Launch) -> Server:
        log = self._directory.path / backend.name / "server.log"
        started = server.start(
            backend.name,
            launch.command,
            port=backend.port,
            api_key=secrets.token_hex(16),
            log=log,
            env=launch.env,
            owner=self._directory.mark,
        )
        self._emit(
            events.BackendStarting(
                backend=backend.name,
                port=backend.port,
                pid=started.process.pid,
                command=launch.command,
                log=str(log),
                start=number,
            )
        )
        return started

    async def _ready(self, serving: Serving, launch: Launch, prompts: Sequence[Prompt]) -> None:
        """Wait for /health, note what runs, send the warm-up."""
        backend, name = serving.backend, serving.backend.name

        def tell(phase: str) -> None:
            self._emit(events.BackendPhase(backend=name, phase=phase))

        seconds = await serving.server.wait_ready(backend.startup_timeout_s, tell)
        up = serving.server
        ran = self._launcher.ran(
            await up.version(), up.log, up.log_start, serving.target.log.folder
        )
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
        ready = events.BackendReady(backend=name, seconds=seconds, ran=ran, mismatches=mismatches)
        self._emit(ready)

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
        at_once = replace(
            load(self._config.experiment, serving, sent, WARMUP),
            request_rate="inf",
            arrival="poisson",
            ramp_up_s=0.0,
        )
        await self._send(at_once, serving)
        if lens := await asyncio.to_thread(
            self._launcher.warmup_input_lens, serving.backend, self._config.model
        ):
            shortest = min(prompts, key=lambda prompt: len(prompt.text))
            each = [shortest] * len(lens)
            # One at a time: a prompt that is alone in its step sets the step's size.
            alone = replace(at_once, prompts=each, input_len=lens, output_len=1, max_concurrency=1)
            await self._send(alone, serving)

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
