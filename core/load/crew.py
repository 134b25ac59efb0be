"""The parent's side of the load workers: it starts the processes and gathers what they report."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from core.errors import LoadError
from core.load import address, pipe
from core.load.pipe import Advanced, Done, Down, Finished, Go, Job, Ready
from core.load.record import Progress, RequestRecord, WorkerHealth

now = time.perf_counter_ns
OTHER_FILES = 24  # that a worker may have open besides its connections: 14, and some more


def most_connections() -> int:
    """How many connections one worker may hold: it raises its limit of open files to the hard
    one."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if limit == resource.RLIM_INFINITY else max(1, limit - OTHER_FILES)


class Gathered:
    """What the workers have reported so far."""

    def __init__(
        self,
        workers: int,
        headers: Sequence[tuple[str, str]],
        on_done: Callable[[RequestRecord], None],
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.records: dict[int, RequestRecord] = {}
        self._latest = [Progress()] * workers
        self._headers = headers
        self._on_done, self._on_progress = on_done, on_progress
        self._reported_at = self._kinds = 0

    def done(self, record: RequestRecord) -> None:
        if record.error:
            record = replace(record, error=address.without_secrets(record.error, self._headers))
        self.records[record.index] = record
        self._on_done(record)

    def advanced(self, worker: int, progress: Progress) -> None:
        known = self._latest[worker]
        self._latest[worker] = replace(
            progress,
            ttfts_ns=known.ttfts_ns + progress.ttfts_ns,
            gaps_ns=known.gaps_ns + progress.gaps_ns,
        )
        if now() - self._reported_at > 9e8 or progress.kinds > self._kinds:
            self._kinds = max(self._kinds, progress.kinds)
            self.report()

    def report(self) -> None:
        """Report the sums; what has arrived is reported once."""
        self._reported_at = now()
        self._on_progress(sum(self._latest, Progress()))
        self._latest = [progress.reported() for progress in self._latest]


class WorkerProcess:
    """One worker process."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._process: asyncio.subprocess.Process | None = None
        self.last_words = ""

    async def start(self) -> None:
        """Start the worker; wait until its requests are built and its connections are open.
        LoadError if it ends instead."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "core.load.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # the terminal's ctrl-c is for the parent
        )
        self.tell(self._job)
        if not isinstance(await self._received(), Ready):
            await self._died()
            raise LoadError(f"a load worker did not start: {self.last_words}")

    def tell(self, message: Down) -> None:
        process = self._process
        if process and process.stdin and process.returncode is None:
            process.stdin.write(pipe.frame(message))

    async def follow(self, t0: int, place: int, gathered: Gathered) -> WorkerHealth | None:
        """Start its requests at `t0` and collect its reports; None if the worker dies."""
        self.tell(Go(t0))
        while (message := await self._received()) is not None:
            if isinstance(message, Done):
                gathered.done(message.record)
            elif isinstance(message, Advanced):
                gathered.advanced(place, message.progress)
            elif isinstance(message, Finished):
                gathered.report()
                return message.health
        await self._died()
        return None

    async def end(self) -> None:
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.wait()

    async def _received(self) -> pipe.Up | None:
        assert self._process is not None
        assert self._process.stdout is not None
        data = await pipe.read_frame(self._process.stdout)
        return None if data is None else pipe.decode_up.decode(data)

    async def _died(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        lines = (await self._process.stderr.read()).decode(errors="replace").strip().splitlines()
        code = await self._process.wait()
        self.last_words = f"exit code {code}, {lines[-1]}" if lines else f"exit code {code}"
