"""Wires and logs: whatever arrives, a reader uses what it can or reports an error of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.garbage import json_like, near, nested

from core.backends import prometheus, rootcause, serverlog
from core.experiment import control
from core.load import metrics
from core.load.client import Load
from core.load.connection import Connection
from core.load.record import RequestRecord
from core.load.sse import EventParser, EventTooLong, Failed
from core.load.stream import TokenStream
from core.load.wire import Times
from core.rundir import result

pytestmark = pytest.mark.fuzz

EVENT_KEYS = (
    "choices",
    "text",
    "delta",
    "content",
    "usage",
    "prompt_tokens",
    "completion_tokens",
    "error",
    "reasoning",
    "object",
    "message",
    "code",
    "finish_reason",
    "tool_calls",
)
SSE = near(
    b"data: ",
    b"data:",
    b"\n\n",
    b"\r\n",
    b"\r",
    b": ping\n",
    b"event: error\n",
    b"error: ",
    b"[DONE]",
    b"data: [DONE]",
    b'{"choices":[{"text":"a"}],"usage":{"completion_tokens":2}}',
    b'{"choices":[{"text":"',
    b"\xef\xbb\xbf",
    *nested(3000),
)


def pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    """`data` cut into reads of these sizes, and the rest."""
    cut, place = [], 0
    for size in sizes:
        cut.append(data[place : place + size])
        place += size
    return [*cut, data[place:]]


def figures_of(stream: TokenStream) -> None:
    """What has been taken of an answer makes a record and finite figures, if it is good."""
    error = stream.closing_error()
    assert isinstance(error, str)
    tokens = stream.event_tokens()
    assert len(tokens) == len(stream.stamps)
    assert sum(tokens) == stream.received
    assert all(n > 0 for n in tokens)
    assert stream.visible_tokens is None or 0 <= stream.visible_tokens <= stream.received
    record = RequestRecord(
        index=0,
        prompt_id="p",
        t_due_ns=1,
        t_start_ns=1,
        t_sent_ns=1,
        t_done_ns=10**6,
        stamps_ns=stream.stamps,
        event_tokens=tokens,
        prompt_tokens=stream.prompt_tokens,
        output_tokens=stream.output_tokens,
        visible_tokens=stream.visible_tokens,
        text="".join(stream.texts),
        error=error,
    )
    figures = metrics.summarise([record])
    assert figures.completed == (not error)
    load = Load(base_url="http://x", model="m", label="001", prompts=())
    taken = result.of_load(load, [record], figures, None, backend="b", dataset="001", path="d")
    assert result.decode(msgspec.json.encode(taken)) == taken


@given(data=SSE, sizes=st.lists(st.integers(0, 40), max_size=6))
@example(data=b'data: {"error":' + nested()[0] + b"\n\n", sizes=[])
@example(
    data=b'data: {"choices":[{"text":"a"}],"usage":{"completion_tokens":4294967296}}\n\n'
    b"data: [DONE]\n\n",
    sizes=[],
)
def test_any_bytes_as_a_stream(data: bytes, sizes: list[int]) -> None:
    stream, parser = TokenStream(50), EventParser()
    for at, piece in enumerate(pieces(data, sizes), 1):
        stream.feed(piece, at)
        try:
            assert all(isinstance(event, bytes | Failed) for event in parser.feed(piece))
        except EventTooLong:
            break
    figures_of(stream)


@given(events=st.lists(json_like(*EVENT_KEYS) | st.just("[DONE]"), max_size=5))
@example(events=[{"choices": [{"text": "a"}], "usage": {"completion_tokens": 2**62}}, "[DONE]"])
@example(events=[{"choices": [{"text": "a"}], "usage": {"completion_tokens": -3}}, "[DONE]"])
def test_any_events(events: list[Any]) -> None:
    stream = TokenStream(50)
    for at, event in enumerate(events, 1):
        data = event.encode() if event == "[DONE]" else json.dumps(event).encode()
        stream.feed(b"data: " + data + b"\n\n", at)
    stream.feed(b"data: [DONE]\n\n", 99)
    figures_of(stream)


class _NoWire:
    """Takes what is sent, and brings nothing."""

    def send(self, data: bytes, times: Times, flushed: Any) -> None:
        times.sent = 1
        flushed()

    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def close(self) -> None: ...
    def poll(self) -> None: ...


HTTP = near(
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 204 No\r\n\r\n",
    b"HTTP/1.0 500 Bad\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: -5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n",
    b"Upgrade: x\r\nConnection: upgrade\r\n",
    b"\r\n",
    b"\r\n\r\n",
    b"5\r\nhello\r\n",
    b"0\r\n\r\n",
    b"0\r\nx: y\r\n\r\n",
    b"ffffffffffffffff\r\n",
    b"hello",
)


@given(
    data=HTTP,
    sizes=st.lists(st.integers(1, 60), max_size=6),
    with_sink=st.booleans(),
    reset=st.booleans(),
)
@example(
    data=b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" * 2, sizes=[], with_sink=True, reset=False
)
def test_any_bytes_as_an_answer(
    data: bytes, sizes: list[int], with_sink: bool, reset: bool
) -> None:
    got = bytearray()

    async def scenario() -> None:
        connection = Connection()
        connection.wire = _NoWire()
        asking = asyncio.ensure_future(
            connection.request(b"", Times(), 1e6, read_s=None, write_s=None)
        )
        await asyncio.sleep(0)
        for at, piece in enumerate(pieces(data, sizes), 1):
            if piece and connection.is_open:
                connection.received(piece, at)
        if connection.is_open:
            connection.lost(OSError("reset") if reset else None)
        exchange = await asking
        if with_sink:
            await exchange.attach(lambda piece, at: got.extend(piece))
        while (more := await exchange.next_piece()) is not None:
            got.extend(more)

    with contextlib.suppress(httpx.HTTPError):
        asyncio.run(scenario())
    assert len(got) <= len(data)


@given(
    lines=st.lists(near(b'{"type":"Cancel","runs":["a"]}', b'{"type":"Stop"', b"\xff"), max_size=4)
)
@example(lines=nested())
@example(lines=[b'{"type":"Cancel","runs":["\xff"]}'])
@example(lines=[b'{"type":"Cancel","runs":["\\ud800"]}'])
def test_any_line_to_the_control_socket_has_an_answer(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    lines = [line for line in lines if b"\n" not in line]

    async def talk() -> list[control.Reply]:
        async with control.listening(folder, lambda command: None):
            reader, writer = await asyncio.open_unix_connection(folder / control.SOCKET)
            writer.write(b"".join(line + b"\n" for line in lines))
            answers = [await reader.readline() for _ in lines]
            writer.close()
        return [msgspec.json.decode(answer, type=control.Reply) for answer in answers]

    for reply in asyncio.run(asyncio.wait_for(talk(), 30)):
        assert reply.error == "" or reply.error.startswith("not a command: ")


LOG = near(
    b"Starting to load model",
    b"ERROR 11-24 10:00:00 [core.py:1] ",
    b"(EngineCore pid=12) ",
    b"RuntimeError: ",
    b"CUDA error: out of memory",
    b"\r",
    b"\n",
    b"\x1b[31m",
    b"\xff\xfe",
)


@given(data=LOG, offset=st.integers(0, 50))
def test_any_server_log(tmp_path_factory: pytest.TempPathFactory, data: bytes, offset: int) -> None:
    file = tmp_path_factory.getbasetemp() / "server.log"
    file.write_bytes(data)
    assert all(isinstance(phase, str) for phase in serverlog.PhaseFollower(file, offset).read())
    assert len(serverlog.tail(file, offset)) <= serverlog.TAIL_LINES
    assert "\n" not in rootcause.find(serverlog.lines(file, offset))


@given(
    text=near(
        b"vllm:num_requests_running",
        b'{engine="0"}',
        b" 1e999",
        b" NaN",
        b" -e",
        b" 7\n",
        b"\n",
        b"# HELP ",
    )
)
@example(text=b"vllm:num_requests_running 1e999\nvllm:num_requests_running -1e999\n")
@example(text=b"vllm:kv_cache_usage_perc -e\n")
def test_any_metrics(text: bytes) -> None:
    load = prometheus.read_metrics(text.decode(errors="replace"))
    assert msgspec.json.decode(msgspec.json.encode(load), type=type(load)) == load
