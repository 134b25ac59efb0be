"""A running server: started under a supervisor, waited for, known to be ours, and ended with its
whole tree."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from core import fetch
from core.backends import node, nvml, ports, rootcause, serverlog, supervise
from core.backends.nvml import Device

POLL_S = 0.05
HEALTH_S = 2.0  # that an answer may take
VERSION_S = 10.0
DEATH_S = 5.0  # that a dying server tree may take
BUILD_POLL_S = 5.0
COMPILERS = {"ninja", "nvcc", "cicc"}  # no ptxas: Triton runs it by itself, in every start
BUILDING = "building CUDA kernels, which the first start does once and which can take many minutes"
# A supervisor that takes longer hangs itself.
STOP_S = supervise.GRACE_S + supervise.KILL_S + 2.0


class ServerError(Exception):
    """A server did not come up, and why; `log_tail` holds the last lines of its log."""

    def __init__(self, reason: str, log_tail: list[str]) -> None:
        super().__init__(reason)
        self.log_tail = log_tail


@dataclass(slots=True)
class Server:
    """One server process tree. `stop()` returns when nothing of it is left."""

    name: str
    port: int
    api_key: str
    log: Path
    process: subprocess.Popen[bytes]
    pipe: int  # closing it, as our death does, ends the server
    started: float
    mark: str  # in the environment of every process of it
    log_start: int = 0  # where this start's lines begin in the log
    gpus_before: tuple[Device, ...] = ()
    log_ready: int | None = None  # how long the log was when it was ready

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def log_tail(self) -> list[str]:
        """The last lines of what this server wrote."""
        return serverlog.tail(self.log, self.log_start)

    async def wait_ready(
        self, timeout_s: float, on_phase: Callable[[str], None] = lambda phase: None
    ) -> float:
        """Seconds from start to the first good /health; `on_phase` gets each start-up phase
        that the log shows.

        ServerError where it ends, the deadline passes, or another process answers on its port.
        """
        phases = serverlog.PhaseFollower(self.log, self.log_start)
        looked = self.started
        async with httpx.AsyncClient(trust_env=False, timeout=HEALTH_S) as client:
            while time.monotonic() - self.started < timeout_s:
                is_healthy = not self.has_ended and await self._is_healthy(client, check=True)
                for phase in phases.read():
                    on_phase(phase)
                if is_healthy:
                    self.log_ready = self.log.stat().st_size if self.log.is_file() else None
                    return time.monotonic() - self.started
                if time.monotonic() - looked > BUILD_POLL_S:
                    looked = time.monotonic()
                    if phases.phase != BUILDING and self._is_building():
                        phases.phase = BUILDING
                        on_phase(BUILDING)
                if self.has_ended:
                    raise ServerError(self.death(), self.log_tail())
                await asyncio.sleep(POLL_S)
        last = f", last seen {phases.phase}" if phases.phase else ""
        reason = f"server {self.name} not ready after {timeout_s:g} s (startup_timeout_s){last}"
        raise ServerError(reason, self.log_tail())

    async def _is_healthy(self, client: httpx.AsyncClient, *, check: bool = False) -> bool:
        """With `check`, ServerError where whatever answers is not ours: it gets neither our key nor
        our requests."""
        status = 0
        try:
            status = (
                await fetch.whole(client, "GET", f"{self.base_url}/health", within_s=HEALTH_S)
            ).status_code
        except httpx.ConnectError:
            return False
        except httpx.HTTPError:
            pass  # something listens, and does not speak HTTP
        if check and (other := ports.foreigner(self.port, self._pids())):
            reason = (
                f"server {self.name}: port {self.port} was taken by {other} while it started;"
                " end that process, or choose another port"
            )
            raise ServerError(reason, self.log_tail())
        return status == 200

    def _is_building(self) -> bool:
        """Whether a compiler runs in its tree: FlashInfer does not log that."""
        with contextlib.suppress(psutil.Error):
            return any(process.name() in COMPILERS for process in supervise.marked(self.mark))
        return False

    def _pids(self) -> set[int]:
        return {process.pid for process in supervise.marked(self.mark)}

    async def is_up(self) -> bool:
        """Whether it answers now. If not, it is given a moment to end, so that `has_ended` is
        reliable."""
        async with httpx.AsyncClient(trust_env=False, timeout=HEALTH_S) as client:
            if not self.has_ended and await self._is_healthy(client):
                return True
        deadline = time.monotonic() + DEATH_S
        while not self.has_ended and time.monotonic() < deadline:
            await asyncio.sleep(POLL_S)
        return False

    def death(self, lines: Iterable[str] | None = None) -> str:
        """How it ended, and why according to its log, or to `lines` where the log cannot be read
        back."""
        code, took = self.process.returncode, time.monotonic() - self.started
        if code < 0:
            by = signal.Signals(-code).name
            return f"the supervisor of server {self.name} was killed by {by} after {took:.1f} s"
        told = None if lines is None else list(lines)
        read = serverlog.lines(self.log, self.log_start) if told is None else told
        if lost := rootcause.node(read):
            return f"server {self.name} ended after {took:.1f} s: {lost}"
        if code > 128 and code - 128 in signal.valid_signals():
            by = signal.Signals(code - 128).name
            return f"server {self.name} was killed by {by} after {took:.1f} s"
        if told is None:
            cause = self.complaint() or rootcause.find(serverlog.lines(self.log, self.log_start))
        else:
            cause = rootcause.find(told)
        if "address already in use" in cause.lower() and (other := ports.foreigner(self.port, ())):
            cause = f"{cause}: port {self.port} is held by {other}"
        exited = f"server {self.name} exited with code {code} after {took:.1f} s"
        return f"{exited}: {cause}" if cause else exited

    def complaint(self) -> str:
        """The cause of a failure since it was ready, as its log names it; empty if it names none,
        and before it was ready."""
        if self.log_ready is None:
            return ""
        return rootcause.cause(serverlog.lines(self.log, self.log_ready))

    async def version(self) -> dict[str, str]:
        """The server's own account at /version. ServerError where that is no JSON object."""
        key = ("Authorization", f"Bearer {self.api_key}")
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=VERSION_S) as client:
                answer = await fetch.whole(
                    client, "GET", f"{self.base_url}/version", within_s=VERSION_S, headers=[key]
                )
                return {k: str(v) for k, v in fetch.decoded(answer, dict[str, Any]).items()}
        except httpx.HTTPError as error:
            raise ServerError(
                f"server {self.name}: /version: {type(error).__name__}: {error}", self.log_tail()
            ) from None

    def stop(self) -> list[str]:
        """End the tree and wait for it, and for the GPUs' memory: what is still there after that, a
        sentence each.

        A second call does nothing.
        """
        if self.pipe < 0:
            return []
        os.close(self.pipe)
        self.pipe = -1
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_S)
        left = supervise.end(
            lambda: supervise.marked(self.mark)
        )  # of a supervisor that was killed, or hangs
        self.process.poll()
        stuck = [f"process {process.pid} of server {self.name} cannot be ended" for process in left]
        return stuck + nvml.wait_free(self.gpus_before)


def start(
    name: str,
    command: list[str],
    *,
    port: int,
    api_key: str,
    log: Path,
    env: dict[str, str],
    owner: str = "",
) -> Server:
    """Start `command` under a supervisor. The API key travels in the environment, never in argv.

    `owner`: what the mark of its processes begins with (`RunDirectory.mark`).
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    before = tuple(nvml.seen(env))
    log_start = log.stat().st_size if log.is_file() else 0
    mark = owner + secrets.token_hex(8)
    read_end, write_end = os.pipe()
    # `-P`: the working directory stays off sys.path (a folder `datasets/` there would shadow the
    # library of that name).
    supervisor = [sys.executable, "-P", supervise.__file__, str(read_end), *command]
    # SPT_NOENV: else setproctitle, which names vLLM's processes, writes over the environment that
    # /proc shows.
    marks = {supervise.MARK: mark, node.LOG: str(log.absolute()), "SPT_NOENV": "1"}
    with open(log, "ab") as out:
        process = subprocess.Popen(
            supervisor,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            pass_fds=[read_end],
            start_new_session=True,
            env={**os.environ, "VLLM_API_KEY": api_key, **env, **marks},
        )
    os.close(read_end)
    return Server(
        name, port, api_key, log, process, write_end, time.monotonic(), mark, log_start, before
    )
