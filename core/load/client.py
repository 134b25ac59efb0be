"""Puts a load on a server: splits a schedule over worker processes and collects their records."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx
import msgspec

from core import fetch
from core.errors import LoadError
from core.load import address, schedule
from core.load.crew import Gathered, WorkerProcess, most_connections
from core.load.pipe import Job, Row, Stop
from core.load.record import Progress, Records, RequestRecord
from core.load.transport import Transport
from core.workload import trace
from core.workload.dataset import Prompt
from core.workload.trace import TraceUnit

now = time.perf_counter_ns
STREAMS_PER_WORKER = 64
START_MARGIN_NS = 5_000_000
STOP_S = 1.0
ANSWER_BYTES = 2 << 20  # the largest answer, plus TOKEN_BYTES per requested token
TOKEN_BYTES = 4 << 10
TOKEN_LIMITS = ("max_tokens", "max_completion_tokens")
MAX_REQUESTED = 1 << 31  # beyond any context: a server refuses such a request
MAX_TOKENS = 1 << 17  # of an answer without a requested limit
TOKENIZED = 100  # prompts whose tokens are looked up
TOKENIZE_S = 10.0  # for all of them
EARLY_S = 1.0  # connections for requests due within this time are opened before the start


@dataclass(frozen=True, slots=True)
class Load:
    """The requests of one run. `label` is in every X-Request-Id, so that the gate log can name the
    run of its steps.

    `base_url` as in core.load.address. `headers`: each name is sent once, in place of our own.
    `arrival`, `burstiness` and `ramp_up_s` as in core.load.schedule; "trace" replays the prompts'
    timestamps, which are in `trace_unit`. `input_len`: number of tokens to which every prompt is
    cut or repeated, or one number per prompt; 0: as written. `temperature` above 0: request i is
    drawn with `seed` + i. `extra_body` is merged into every request body; None removes a field.
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
    trace_unit: TraceUnit = "s"
    burstiness: float = 1.0
    ramp_up_s: float = 0.0
    max_concurrency: int = 0
    seed: int = 0
    stall_timeout_s: float = 120.0
    workers: int | Literal["auto"] = "auto"
    slo: Mapping[str, float] = field(default_factory=dict)  # limits in ms, see core.load.metrics

    @property
    def url(self) -> str:
        """Where the requests go."""
        return address.of(self.base_url).url("chat/completions" if self.chat else "completions")

    @property
    def slots(self) -> int:
        """Maximum number of requests in flight."""
        return min(self.max_concurrency or len(self.prompts), len(self.prompts))

    @property
    def asked_tokens(self) -> int | None:
        """Number of tokens requested per answer; None: as many as the server likes."""
        asked = {"max_tokens": self.output_len, **self.extra_body}
        return max(
            [
                min(n, MAX_REQUESTED)
                for name in TOKEN_LIMITS
                if isinstance(n := asked.get(name), int) and n > 0
            ],
            default=None,
        )

    @property
    def max_tokens(self) -> int:
        """Maximum number of tokens that an answer may have."""
        return MAX_TOKENS if self.asked_tokens is None else self.asked_tokens

    @property
    def is_at_once(self) -> bool:
        """Whether all slots are used: no rate and no trace spreads the requests."""
        return self.request_rate == "inf" and self.arrival != "trace"

    @property
    def is_closed_loop(self) -> bool:
        """Whether concurrency is fixed: the next request is due when one ends."""
        return self.is_at_once and self.slots < len(self.prompts)


async def run(
    load: Load,
    on_done: Callable[[RequestRecord], None] = lambda record: None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Records:
    """Send every prompt once, when it is due; one record per prompt, in dataset order.

    `on_done` gets each record as its request ends; `on_progress` gets the sums about once a second,
    at the first token and the first gap between tokens, and at the end. On cancellation the sockets
    close, and `on_done` gets the unfinished records. LoadError, and httpx.HTTPError (from
    /tokenize), are raised before anything is sent.
    """
    jobs = _jobs(load, await _bodies(load))
    crew = [WorkerProcess(job) for job in jobs]
    gathered = Gathered(len(jobs), _headers(load), on_done, on_progress)
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


# --- requests ---


def _jobs(load: Load, bodies: Sequence[bytes]) -> list[Job]:
    """The schedule, dealt to the workers in turn."""
    due_s = _due(load)
    order = sorted(range(len(bodies)), key=lambda i: due_s[i])
    count = min(_workers(load), max(1, load.slots))
    if load.is_at_once and (words := too_few_files(load)):
        raise LoadError(f"{words}; raise it, send fewer at once, or set more load workers")
    return [_job(load, bodies, due_s, order[place::count], place, count) for place in range(count)]


def too_few_files(load: Load) -> str:
    """What this machine's limit of open files means for the load; "" if it is high enough."""
    workers = min(_workers(load), max(1, load.slots))
    share, most = -(-load.slots // workers), most_connections()
    if share <= most:
        return ""
    return (
        f"the limit of open files (ulimit -Hn) allows {most} connections a load worker, and up to"
        f" {share} are needed"
    )


def _job(
    load: Load,
    bodies: Sequence[bytes],
    due_s: Sequence[float],
    mine: Sequence[int],
    place: int,
    count: int,
) -> Job:
    share = load.slots // count + (place < load.slots % count)
    concurrency = min(share, most_connections())
    rows = [
        Row(i, load.prompts[i].id, f"seg.{load.label}.{i}", int(due_s[i] * 1e9), bodies[i])
        for i in mine
    ]
    return Job(
        url=load.url,
        headers=address.merged(
            [("Content-Type", "application/json"), ("Accept-Encoding", "identity")], _headers(load)
        ),
        rows=rows,
        concurrency=max(1, concurrency),
        closed_loop=load.is_closed_loop,
        connections=min(concurrency, sum(row.due_ns < EARLY_S * 1e9 for row in rows)),
        stall_timeout_s=load.stall_timeout_s,
        max_tokens=load.max_tokens,
        max_answer_bytes=ANSWER_BYTES + load.max_tokens * TOKEN_BYTES,
    )


def _due(load: Load) -> list[float]:
    due = _trace(load) if load.arrival == "trace" else _arrivals(load, load.arrival)
    last = max(due, default=0.0)
    if last > trace.LONGEST_S:
        raise LoadError(
            f"the last of {len(due)} requests would be due after {last / 86400:.4g} days, and a"
            " load may take 7; send fewer, or send them faster"
        )
    return due


def _trace(load: Load) -> list[float]:
    stamps = [p.timestamp for p in load.prompts if p.timestamp is not None]
    if len(stamps) < len(load.prompts):
        raise LoadError(
            'arrival "trace" needs a "timestamp" in every line of the dataset; choose another'
            " arrival"
        )
    return trace.replayed(stamps, load.trace_unit)


def _arrivals(load: Load, arrival: schedule.Arrival) -> list[float]:
    return schedule.arrivals(
        len(load.prompts),
        load.request_rate,
        load.seed,
        arrival=arrival,
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
    """The key and the user's headers, each once: a user of the URL before the key, a header before
    both."""
    of_url = address.of(load.base_url).headers
    return address.merged(address.bearer(load.api_key), of_url, load.headers)


async def _bodies(load: Load) -> list[bytes]:
    if not load.input_len:
        return [_body(load, i, prompt.text) for i, prompt in enumerate(load.prompts)]
    if load.chat:
        raise LoadError(
            "input_len sends a prompt as tokens, and a chat request cannot hold tokens;"
            " use completions, or input_len 0"
        )
    async with _client(load) as client:
        return [
            _body(load, i, _cut(await _tokens(client, load, prompt.text), length, prompt.id))
            for i, (prompt, length) in enumerate(zip(load.prompts, _lengths(load), strict=True))
        ]


def _lengths(load: Load) -> Sequence[int]:
    """Tokens of each prompt; 0: as written."""
    if isinstance(load.input_len, int):
        return [load.input_len] * len(load.prompts)
    return load.input_len


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
        headers=_headers(load),
        timeout=load.stall_timeout_s,
    )


async def _tokens(
    client: httpx.AsyncClient, load: Load, text: str, *, special: bool = False
) -> list[int]:
    """The text's tokens from the server's own tokenizer (POST /tokenize of vLLM, and of llama.cpp,
    which wants `content`); `special`: with those that it adds to a prompt, such as BOS."""
    wanted = {"model": load.model, "prompt": text, "content": text, "add_special_tokens": special}
    url = address.of(load.base_url).tokenize_url
    answer = await fetch.whole(client, "POST", url, within_s=load.stall_timeout_s, json=wanted)
    return fetch.decoded(answer, _Tokens).tokens


async def prompt_tokens(load: Load) -> list[list[int]]:
    """The tokens of the first TOKENIZED prompts, by the server's tokenizer, as they are sent (of a
    chat's the text alone); empty if it has none that answers in time. Not while requests are
    timed."""
    some = list(zip(load.prompts, _lengths(load), strict=True))[:TOKENIZED]
    with contextlib.suppress(httpx.HTTPError, TimeoutError):
        async with _client(load) as client, asyncio.timeout(TOKENIZE_S):
            found = [
                await _tokens(client, load, prompt.text, special=not n and not load.chat)
                for prompt, n in some
            ]
        cut = zip(found, some, strict=True)
        return [_cut(tokens, n, p.id) if n and tokens else tokens for tokens, (p, n) in cut]
    return []


async def _counted(load: Load, records: Sequence[RequestRecord]) -> list[RequestRecord]:
    """The records, with answers without usage counted by the server's tokenizer if it has one and
    all of the answer is text, else by their events."""
    uncounted = [r for r in records if r.ok and r.is_uncounted_text]
    counts: dict[int, int] = {}
    if uncounted:
        with contextlib.suppress(httpx.HTTPError, TimeoutError):
            async with _client(load) as client, asyncio.timeout(load.stall_timeout_s):
                for record in uncounted:
                    counts[record.index] = len(await _tokens(client, load, record.text))
    return [
        # A tokenizer that finds none in a text did not understand the request.
        r.tokenized(n) if (n := counts.get(r.index)) else r
        for r in records
    ]


def _lost(load: Load, index: int, t0: int, crew: Sequence[WorkerProcess]) -> RequestRecord:
    """A request whose worker died."""
    words = next((w.last_words for w in crew if w.last_words), "no output")
    at = now()
    return RequestRecord(
        index, load.prompts[index].id, t0, at, 0, at, error=f"load worker ended: {words}"
    )
