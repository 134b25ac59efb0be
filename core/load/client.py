"""Streams completions from an OpenAI-compatible server and stamps every token."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx
import msgspec

from core.dataset import Prompt
from core.load import schedule
from core.load.sse import EventParser, EventTooLong
from core.metrics import RequestRecord

now = time.perf_counter_ns
MAX_ERROR_TEXT = 300


@dataclass(frozen=True, slots=True)
class Load:
    """One run's worth of requests. `label` goes into every X-Request-Id, so that the gate log can name its steps."""

    base_url: str
    model: str
    label: str
    prompts: Sequence[Prompt]
    api_key: str = ""
    input_len: int = 0
    output_len: int = 50
    request_rate: float | Literal["inf"] = "inf"
    max_concurrency: int = 0
    seed: int = 0
    stall_timeout_s: float = 120.0


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = 0


class _Choice(msgspec.Struct):
    text: str | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


@dataclass(slots=True)
class _Stream:
    """What has been read of one response."""

    stamps: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    usage: _Usage | None = None
    reads: int = 0
    shared_reads: int = 0
    finished: bool = False

    def take(self, event: _Event, at: int) -> None:
        """Empty events are not tokens: what they carried goes to the next event with content."""
        text = event.choices[0].text if event.choices else None
        if event.usage is not None:
            self.usage = event.usage
        if not text:
            return
        so_far = sum(self.tokens)
        counted = event.usage.completion_tokens if event.usage else None
        self.tokens.append(max(1, counted - so_far) if counted else 1)
        self.stamps.append(at)
        self.texts.append(text)


async def run(load: Load, on_done: Callable[[RequestRecord], None] = lambda record: None) -> list[RequestRecord]:
    """Send every prompt once, in data set order, at its due time; one record each, in the same order."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=600)
    timeout = httpx.Timeout(load.stall_timeout_s, pool=None)
    headers = {"Authorization": f"Bearer {load.api_key}"} if load.api_key else {}
    gate = asyncio.Semaphore(load.max_concurrency or len(load.prompts) or 1)
    async with httpx.AsyncClient(
        base_url=load.base_url, limits=limits, timeout=timeout, headers=headers, trust_env=False
    ) as client:
        bodies = [await _body(client, load, prompt) for prompt in load.prompts]
        due_s = schedule.arrivals(len(bodies), load.request_rate, load.seed)
        start = now()

        async def one(index: int) -> RequestRecord:
            due = start + int(due_s[index] * 1e9)
            if (wait := due - now()) > 0:
                await asyncio.sleep(wait / 1e9)
            async with gate:
                record = await _request(client, load, index, bodies[index], due)
            on_done(record)
            return record

        return list(await asyncio.gather(*(one(i) for i in range(len(bodies)))))


async def _body(client: httpx.AsyncClient, load: Load, prompt: Prompt) -> bytes:
    text: str | list[int] = prompt.text
    if load.input_len:
        text = await _exact_tokens(client, load, prompt.text)
    fields = {
        "model": load.model,
        "prompt": text,
        "max_tokens": load.output_len,
        "temperature": 0.0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    return msgspec.json.encode(fields)


async def _exact_tokens(client: httpx.AsyncClient, load: Load, text: str) -> list[int]:
    """The prompt cut or repeated to `input_len` tokens of the server's own tokenizer (vLLM's POST /tokenize)."""
    response = await client.post("/tokenize", json={"model": load.model, "prompt": text, "add_special_tokens": False})
    response.raise_for_status()
    tokens: list[int] = response.json()["tokens"]
    return (tokens * (load.input_len // len(tokens) + 1))[: load.input_len]


async def _request(client: httpx.AsyncClient, load: Load, index: int, body: bytes, due: int) -> RequestRecord:
    start = sent = now()

    async def trace(name: str, info: dict[str, Any]) -> None:
        nonlocal sent
        if name == "http11.send_request_body.complete":
            sent = now()

    headers = {"Content-Type": "application/json", "X-Request-Id": f"seg.{load.label}.{index}"}
    stream, error = _Stream(), ""
    try:
        async with client.stream(
            "POST", "/v1/completions", content=body, headers=headers, extensions={"trace": trace}
        ) as response:
            error = await _read(response, stream)
    except (httpx.HTTPError, EventTooLong, msgspec.DecodeError) as failure:
        error = _named(failure, load.stall_timeout_s)
    if not error and not stream.stamps:
        error = "empty stream: the server ended it without a token"
    counted = stream.usage.completion_tokens if stream.usage else None
    return RequestRecord(
        index=index,
        prompt_id=load.prompts[index].id,
        t_due_ns=due,
        t_start_ns=start,
        t_sent_ns=sent,
        t_done_ns=now(),
        stamps_ns=tuple(stream.stamps),
        event_tokens=tuple(stream.tokens),
        prompt_tokens=stream.usage.prompt_tokens if stream.usage else 0,
        output_tokens=counted or sum(stream.tokens),
        text="".join(stream.texts),
        error=error,
        reads=stream.reads,
        shared_reads=stream.shared_reads,
    )


async def _read(response: httpx.Response, stream: _Stream) -> str:
    """Read the whole response into `stream`; the error text, or ""."""
    if response.status_code != 200:
        text = (await response.aread()).decode(errors="replace")
        return f"HTTP {response.status_code}: {text[:MAX_ERROR_TEXT]}"
    parser, decoder = EventParser(), msgspec.json.Decoder(_Event)
    async for chunk in response.aiter_raw():
        at = now()
        events = parser.feed(chunk)
        stream.reads += 1
        stream.shared_reads += len([e for e in events if e != b"[DONE]"]) > 1
        for payload in events:
            if payload == b"[DONE]":
                stream.finished = True
                continue
            event = decoder.decode(payload)
            if event.error is not None:
                return f"server error: {str(event.error)[:MAX_ERROR_TEXT]}"
            stream.take(event, at)
    return "" if stream.finished else "stream cut: the server closed it before [DONE]"


def _named(failure: Exception, stall_timeout_s: float) -> str:
    if isinstance(failure, httpx.ReadTimeout):
        return f"stalled: no bytes for {stall_timeout_s:g} s"
    if isinstance(failure, msgspec.DecodeError):
        return f"not the expected JSON: {failure}"
    return f"{type(failure).__name__}: {failure}"
