"""Puts a load on a server: splits a schedule over worker processes and collects their records."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Any, Literal

import httpx
import msgspec

from core import fetch
from core.load import pipe, schedule
from core.load.pipe import Advanced, Done, Down, Finished, Go, Job, Ready, Row, Stop
from core.load.record import Progress, Records, RequestRecord, WorkerHealth
from core.load.transport import Transport
from core.workload.dataset import Prompt

now = time.perf_counter_ns
STREAMS_PER_WORKER = 64
START_MARGIN_NS = 5_000_000
STOP_S = 1.0
ANSWER_BYTES = 2 << 20  # the largest answer, plus TOKEN_BYTES per requested token
TOKEN_BYTES = 4 << 10
TOKEN_LIMITS = ("max_tokens", "max_completion_tokens")
MAX_TOKENS = 1 << 17  # of an answer without a requested limit
EARLY_S = 1.0  # connections for requests due within this time are opened before the start


@dataclass(frozen=True, slots=True)
class Load:
    """The requests of one run. `label` is in every X-Request-Id, so that the gate log can name the
    run of its steps.

    `arrival`, `burstiness` and `ramp_up_s` as in core.load.schedule; "trace" replays the prompts'
    timestamps. `input_len`: number of tokens to which every prompt is cut or repeated, or one
    number per prompt; 0: as written. `temperature` above 0: request i is drawn with `seed` + i.
    `extra_body` is merged into every request body; None removes a field.
    """

    base_url: str
    model: str
    label: str
    prompts: Sequence[Prompt]
    api_key: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    chat: bool = False
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    input_len: int | Sequence[int] = 0
    output_len: int = 50
    temperature: float = 0.0
    request_rate: float | Literal["inf"] = "inf"
    arrival: schedule.Arrival | Literal["trace"] = "poisson"
    burstiness: float = 1.0
    ramp_up_s: float = 0.0
    max_concurrency: int = 0
    seed: int = 0
    stall_timeout_s: float = 120.0
    workers: int | Literal["auto"] = "auto"
    slo: Mapping[str, float] = field(default_factory=dict)  # limits in ms, see core.load.metrics

    @property
    def slots(self) -> int:
        """Maximum number of requests in flight."""
        return min(self.max_concurrency or len(self.prompts), len(self.prompts))

    @property
    def max_tokens(self) -> int:
        """Maximum number of tokens requested per answer."""
        asked = {"max_tokens": self.output_len, **self.extra_body}
        return max(
            [n for name in TOKEN_LIMITS if isinstance(n := asked.get(name), int)],
            default=MAX_TOKENS,
        )

    @property
    def is_closed_loop(self) -> bool:
        """Whether concurrency is fixed: the next request is due when one ends."""
        return (
            self.request_rate == "inf"
            and self.arrival != "trace"
            and self.slots < len(self.prompts)
        )


class LoadError(Exception):
    """The load cannot be started; the text says why."""


async def run(
    load: Load,
    on_done: Callable[[RequestRecord], None] = lambda record: None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Records:
    """Send every prompt once, when it is due; one record per prompt, in dataset order.

    `on_done` gets each record as its request ends; `on_progress` gets the sums about once a second
    and at the end. On cancellation the sockets close, and `on_done` gets the unfinished records.
    LoadError, and httpx.HTTPError (from /tokenize), are raised before anything is sent.
    """
    jobs = _jobs(load, await _bodies(load))
    crew = [_WorkerProcess(job) for job in jobs]
    gathered = _Gathered(len(jobs), on_done, on_progress)
    try:
        await asyncio.gather(*(worker.start() for worker in crew))
        t0 = now() + START_MARGIN_NS
        following = [asyncio.ensure_future(w.follow(t0, i, gathered)) for i, w in enumerate(crew)]
        try:
            await asyncio.wait(following, return_when=asyncio.FIRST_EXCEPTION)
        except asyncio.CancelledError:
            for worker in crew:
                worker.tell(Stop())
            await asyncio.wait(following, timeout=STOP_S)
            raise
    finally:
        await asyncio.gather(*(worker.end() for worker in crew))
    # Raises what a callback raised.
    health = [h for h in await asyncio.gather(*following) if h is not None]
    records = [
        gathered.records.get(i) or _lost(load, i, t0, crew) for i in range(len(load.prompts))
    ]
    return Records(await _counted(load, records), health)


class _Gathered:
    """What the workers have reported so far."""

    def __init__(
        self,
        workers: int,
        on_done: Callable[[RequestRecord], None],
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.records: dict[int, RequestRecord] = {}
        self._latest = [Progress()] * workers
        self._on_done, self._on_progress = on_done, on_progress
        self._reported_at = 0

    def done(self, record: RequestRecord) -> None:
        self.records[record.index] = record
        self._on_done(record)

    def advanced(self, worker: int, progress: Progress, *, last: bool = False) -> None:
        self._latest[worker] = progress
        if last or now() - self._reported_at > 9e8:
            self._reported_at = now()
            self._on_progress(sum(self._latest, Progress()))


class _WorkerProcess:
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

    async def follow(self, t0: int, place: int, gathered: _Gathered) -> WorkerHealth | None:
        """Start its requests at `t0` and collect its reports; None if the worker dies."""
        self.tell(Go(t0))
        progress = Progress()
        while (message := await self._received()) is not None:
            if isinstance(message, Done):
                gathered.done(message.record)
            elif isinstance(message, Advanced):
                progress = message.progress
                gathered.advanced(place, progress)
            elif isinstance(message, Finished):
                gathered.advanced(place, progress, last=True)
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


# --- requests ---


def _jobs(load: Load, bodies: Sequence[bytes]) -> list[Job]:
    """The schedule, dealt to the workers in turn."""
    due_s = _due(load)
    order = sorted(range(len(bodies)), key=lambda i: due_s[i])
    count = min(_workers(load), max(1, load.slots))
    return [_job(load, bodies, due_s, order[place::count], place, count) for place in range(count)]


def _job(
    load: Load,
    bodies: Sequence[bytes],
    due_s: Sequence[float],
    mine: Sequence[int],
    place: int,
    count: int,
) -> Job:
    concurrency = load.slots // count + (place < load.slots % count)
    rows = [
        Row(i, load.prompts[i].id, f"seg.{load.label}.{i}", int(due_s[i] * 1e9), bodies[i])
        for i in mine
    ]
    return Job(
        url=load.base_url + ("/v1/chat/completions" if load.chat else "/v1/completions"),
        headers=[
            ("Content-Type", "application/json"),
            ("Accept-Encoding", "identity"),
            *_headers(load),
        ],
        rows=rows,
        concurrency=max(1, concurrency),
        closed_loop=load.is_closed_loop,
        connections=min(concurrency, sum(row.due_ns < EARLY_S * 1e9 for row in rows)),
        stall_timeout_s=load.stall_timeout_s,
        max_tokens=load.max_tokens,
        max_answer_bytes=ANSWER_BYTES + load.max_tokens * TOKEN_BYTES,
    )


def _due(load: Load) -> list[float]:
    if load.arrival == "trace":
        stamps = [p.timestamp for p in load.prompts if p.timestamp is not None]
        if len(stamps) < len(load.prompts):
            raise LoadError(
                'arrival "trace" needs a "timestamp" (seconds) in every line of the dataset'
            )
        return schedule.replayed(stamps)
    return schedule.arrivals(
        len(load.prompts),
        load.request_rate,
        load.seed,
        arrival=load.arrival,
        burstiness=load.burstiness,
        ramp_up_s=load.ramp_up_s,
        slots=load.slots,
    )


def _workers(load: Load) -> int:
    """Number of workers. "auto": one per 64 streams, at most all cores but one, for the server."""
    if load.workers != "auto":
        return load.workers
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, min(-(-load.slots // STREAMS_PER_WORKER), cores - 1))


def _headers(load: Load) -> list[tuple[str, str]]:
    key = [("Authorization", f"Bearer {load.api_key}")] if load.api_key else []
    return [*key, *load.headers]


async def _bodies(load: Load) -> list[bytes]:
    if not load.input_len:
        return [_body(load, i, prompt.text) for i, prompt in enumerate(load.prompts)]
    if load.chat:
        raise LoadError(
            "input_len sends a prompt as tokens, and a chat request cannot hold tokens;"
            " use completions, or input_len 0"
        )
    lengths = (
        repeat(load.input_len, len(load.prompts))
        if isinstance(load.input_len, int)
        else load.input_len
    )
    async with _client(load) as client:
        return [
            _body(load, i, _cut(await _tokens(client, load, prompt.text), length, prompt.id))
            for i, (prompt, length) in enumerate(zip(load.prompts, lengths, strict=True))
        ]


def _body(load: Load, index: int, prompt: str | list[int]) -> bytes:
    asked = {"messages": [{"role": "user", "content": prompt}]} if load.chat else {"prompt": prompt}
    fields = {
        "model": load.model,
        **asked,
        "max_tokens": load.output_len,
        "temperature": load.temperature,
        "seed": load.seed + index if load.temperature else None,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        **load.extra_body,
    }
    return msgspec.json.encode({name: value for name, value in fields.items() if value is not None})


def _cut(tokens: list[int], length: int, prompt: str) -> list[int]:
    """`tokens` cut or repeated to `length`."""
    if not tokens:
        raise LoadError(
            f"/tokenize: the server finds no tokens in prompt {prompt},"
            " so it cannot be repeated to input_len"
        )
    return (tokens * (length // len(tokens) + 1))[:length]


# --- token counts ---


class _Tokens(msgspec.Struct):
    tokens: list[int]


def _client(load: Load) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=Transport(max_answer_bytes=fetch.MAX_BYTES),
        base_url=load.base_url,
        headers=_headers(load),
        timeout=load.stall_timeout_s,
    )


async def _tokens(client: httpx.AsyncClient, load: Load, text: str) -> list[int]:
    """The text's tokens from the server's own tokenizer (vLLM's POST /tokenize), without special
    tokens."""
    wanted = {"model": load.model, "prompt": text, "add_special_tokens": False}
    answer = await fetch.whole(
        client, "POST", "/tokenize", within_s=load.stall_timeout_s, json=wanted
    )
    return fetch.decoded(answer, _Tokens).tokens


async def _counted(load: Load, records: Sequence[RequestRecord]) -> list[RequestRecord]:
    """The records, with answers without usage counted by the server's tokenizer if it has one, else
    by their events."""
    uncounted = [r for r in records if r.ok and r.output_tokens_from == "events"]
    counts: dict[int, int] = {}
    if uncounted:
        with contextlib.suppress(httpx.HTTPError, TimeoutError):
            async with _client(load) as client, asyncio.timeout(load.stall_timeout_s):
                for record in uncounted:
                    counts[record.index] = len(await _tokens(client, load, record.text))
    return [
        replace(r, output_tokens=counts[r.index], output_tokens_from="tokenizer")
        if r.index in counts
        else r
        for r in records
    ]


def _lost(load: Load, index: int, t0: int, crew: Sequence[_WorkerProcess]) -> RequestRecord:
    """A request whose worker died."""
    words = next((w.last_words for w in crew if w.last_words), "no output")
    at = now()
    return RequestRecord(
        index, load.prompts[index].id, t0, at, 0, at, error=f"load worker ended: {words}"
    )
