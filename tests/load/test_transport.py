from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import gzip
import select
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.load import connection, passes, wire
from core.load.clock import now
from core.load.connection import MAX_HEAD_BYTES, Connection, Exchange
from core.load.transport import Transport, origin_of, post_bytes, wire_bytes
from core.load.wire import Times

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
CHUNKED_OK = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


async def asked(reader: asyncio.StreamReader) -> bytes:
    """One whole request."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        (
            int(line[15:])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length:")
        ),
        0,
    )
    return head + await reader.readexactly(length)


def answering(*answers: bytes, close: bool = True) -> Talk:
    """Answers the requests of each connection in turn, then closes it (or waits for the client
    to)."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await asked(reader)
            writer.write(answer)
            await writer.drain()
        if not close:
            await reader.read()

    return talk


@asynccontextmanager
async def serving(talk: Talk, **options: Any) -> AsyncIterator[tuple[str, list[bool]]]:
    """A raw server; its address, and one entry per connection that turns true when the connection
    is over."""
    over: list[bool] = []

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        place = len(over)
        over.append(False)
        try:
            await talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            over[place] = True
            writer.close()

    server = await asyncio.start_server(one, "127.0.0.1", 0, **options)
    host, port = server.sockets[0].getsockname()
    try:
        yield f"{host}:{port}", over
    finally:
        server.close()


@asynccontextmanager
async def client(
    timeout: Any = 5.0, **options: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, Transport]]:
    transport = Transport(**options)
    async with httpx.AsyncClient(transport=transport, timeout=timeout) as made:
        yield made, transport


async def get(talk: Talk, timeout: Any = 5.0) -> httpx.Response:
    async with serving(talk) as (address, _), client(timeout) as (http, _):
        return await http.get(f"http://{address}/")


def run(coroutine: Any) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 20))


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\nhello world",
        CHUNKED_OK + b"6\r\nhello \r\n5;ext=1\r\nworld\r\n0\r\nx-trailer: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhello world",
        b"HTTP/1.0 200 OK\r\n\r\nhello world",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\nhello world",
    ],
    ids=["content-length", "chunked", "until closed", "HTTP/1.0", "after 100 Continue"],
)
def test_bodies(answer: bytes) -> None:
    response = run(get(answering(answer)))
    assert (response.status_code, response.text) == (200, "hello world")


def test_httpx_does_the_rest() -> None:
    async def scenario() -> None:
        body = gzip.compress(b'{"a": 1}')
        answer = (
            b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(body)
            + body
        )
        got: list[bytes] = []

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            got.append(await asked(reader))
            writer.write(answer)

        async with serving(talk) as (address, _), client() as (http, _):
            response = await http.post(
                f"http://{address}/path?q=1", json={"b": 2}, headers={"X-Mine": "yes"}
            )
            assert response.json() == {"a": 1}
            assert got[0].startswith(b"POST /path?q=1 HTTP/1.1\r\n")
            assert b"x-mine: yes\r\n" in got[0].lower()
            assert got[0].endswith(b'\r\n\r\n{"b":2}')

    run(scenario())


def test_an_error_status_comes_with_its_body() -> None:
    response = run(get(answering(b"HTTP/1.1 503 Busy\r\ncontent-length: 8\r\n\r\ntry soon")))
    assert (response.status_code, response.text) == (503, "try soon")


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (b"", httpx.RemoteProtocolError, "without an answer"),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf",
            httpx.RemoteProtocolError,
            "before the answer's end",
        ),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel",
            httpx.RemoteProtocolError,
            "before the answer",
        ),
        (b"SSH-2.0-OpenSSH_9.6\r\n", httpx.RemoteProtocolError, "not HTTP/1.1"),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
            httpx.RemoteProtocolError,
            "not HTTP/1.1",
        ),
        (
            b"HTTP/1.1 200 OK\r\nx: " + b"y" * 2 * MAX_HEAD_BYTES,
            httpx.RemoteProtocolError,
            "a response head of over",
        ),
    ],
    ids=["nothing", "short body", "short chunk", "not HTTP", "bad chunk", "endless head"],
)
def test_broken_answers_are_httpx_errors(answer: bytes, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        run(get(answering(answer)))


def test_a_silent_server_is_a_read_timeout() -> None:
    with pytest.raises(httpx.ReadTimeout, match=r"no bytes for 0\.05 s"):
        run(get(answering(b"", close=False), httpx.Timeout(5, read=0.05)))
    with pytest.raises(httpx.ReadTimeout):
        run(get(answering(OK[:-1], close=False), httpx.Timeout(5, read=0.05)))


def test_a_server_that_takes_no_bytes_is_a_write_timeout() -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(5)

    async def scenario() -> None:
        async with serving(deaf) as (address, _), client(httpx.Timeout(5, write=0.1)) as (http, _):
            with pytest.raises(httpx.WriteTimeout):
                await http.post(f"http://{address}/", content=b"x" * 50_000_000)

    run(scenario())


def test_a_large_request_is_sent_whole() -> None:
    async def scenario() -> None:
        sizes: list[int] = []

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            sizes.append(len((await asked(reader)).partition(b"\r\n\r\n")[2]))
            writer.write(OK)

        async with serving(talk) as (address, _), client() as (http, _):
            assert (await http.post(f"http://{address}/", content=b"x" * 20_000_000)).text == "ok"
            assert sizes == [20_000_000]

    run(scenario())


def test_no_server_is_a_connect_error_and_no_free_connection_a_pool_timeout() -> None:
    async def scenario() -> None:
        one_at_a_time = client(httpx.Timeout(5, pool=0.05), max_connections=1)
        async with serving(answering(b"", close=False)) as (address, _), one_at_a_time as (http, _):
            held = asyncio.ensure_future(http.get(f"http://{address}/"))
            await asyncio.sleep(0)
            with pytest.raises(httpx.PoolTimeout):
                await http.get(f"http://{address}/")
            held.cancel()
        async with client() as (http, _):
            with pytest.raises(httpx.ConnectError, match=r"127\.0\.0\.1"):
                await http.get(f"http://{address}/")

    run(scenario())


def test_a_connection_is_kept_and_a_stale_one_replaced_once() -> None:
    async def scenario() -> None:
        async with serving(answering(OK, OK)) as (address, over), client() as (http, transport):
            for _ in range(4):  # every connection carries two requests and is closed by the server
                assert (await http.get(f"http://{address}/")).text == "ok"
            assert len(over) == transport.opened == 2

        async def fickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await answering(OK)(reader, writer)
            await asked(reader)  # takes the second request, and closes without a word

        async with serving(fickle) as (address, over), client() as (http, transport):
            for _ in range(2):
                assert (await http.get(f"http://{address}/")).text == "ok"
            assert (len(over), transport.retries) == (2, 1)

    run(scenario())


def test_what_has_been_answered_in_part_is_not_sent_again() -> None:
    async def scenario() -> None:
        async with (
            serving(answering(OK, b"HTTP/1.1 200 OK\r\ncontent-le")) as (address, over),
            client() as (http, own),
        ):
            await http.get(f"http://{address}/")
            with pytest.raises(httpx.RemoteProtocolError):
                await http.get(f"http://{address}/")
            assert (len(over), own.retries) == (1, 0)

    run(scenario())


def test_cancellation_closes_the_socket() -> None:
    async def scenario() -> None:
        started, closed = asyncio.Event(), asyncio.Event()

        async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asked(reader)
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n")
            started.set()
            assert await reader.read() == b""
            closed.set()

        async with serving(endless) as (address, _), client() as (http, _):
            task = asyncio.ensure_future(http.get(f"http://{address}/"))
            await started.wait()
            task.cancel()
            await closed.wait()
            assert task.cancelled() or await asyncio.wait({task})

    run(scenario())


def test_a_slow_reader_holds_the_server_back_and_loses_nothing() -> None:
    async def scenario() -> None:
        size = 30_000_000

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asked(reader)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + b"x" * size)
            await writer.drain()

        async with serving(talk) as (address, _), client() as (http, _):
            async with http.stream("GET", f"http://{address}/") as response:
                exchange: Exchange = response.extensions["exchange"]
                got = 0
                async for piece in response.aiter_raw():
                    got += len(piece)
                    assert exchange.queued_bytes < 2_000_000
                    await asyncio.sleep(0)
            assert got == size

    run(scenario())


def test_closing_ends_requests_under_way_and_the_next_one_connects_anew() -> None:
    async def scenario() -> None:
        loop, connected, go_on = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        connect = loop.sock_connect

        async def slow(*args: Any) -> None:
            await connect(*args)
            connected.set()
            await go_on.wait()

        silence, server = serving(answering(b"", close=False)), serving(answering(OK))
        async with silence as (silent, _), server as (address, _), client() as (http, own):
            answers = [asyncio.ensure_future(http.get(f"http://{silent}/")) for _ in range(3)]
            while own.opened < 3:
                await asyncio.sleep(0.001)
            loop.sock_connect = slow  # type: ignore[method-assign,assignment]
            connecting = asyncio.ensure_future(http.get(f"http://{address}/"))
            await connected.wait()
            await own.aclose()
            for answer in answers:
                with pytest.raises(httpx.ReadError, match="closed here"):
                    await answer
            go_on.set()
            assert (await connecting).text == "ok"
            assert (await http.get(f"http://{address}/")).text == "ok"

    run(scenario())


def test_one_transport_serves_several_event_loops_one_after_another() -> None:
    own = Transport()

    async def scenario(stays: bool) -> None:
        first, second = serving(answering(OK, close=not stays)), serving(answering(OK))
        async with first as (address, _), second as (other, _):
            for place in (address, other):
                response = await own.handle_async_request(httpx.Request("GET", f"http://{place}/"))
                assert await response.aread() == b"ok"
                await response.aclose()
        if not stays:
            await own.aclose()

    run(scenario(stays=False))
    run(scenario(stays=True))  # leaves a connection open
    run(scenario(stays=False))
    assert own.opened == 6


def test_tls(tmp_path: Path) -> None:
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost"
    command += " -addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out cert.pem"
    made = subprocess.run(command.split(), cwd=tmp_path, capture_output=True, check=False)
    if made.returncode:
        pytest.skip("openssl cannot make a certificate here")
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")

    async def scenario() -> None:
        talk = answering(
            *[b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"] * 2
        )
        async with serving(talk, ssl=theirs) as (address, over):
            async with client(
                tls=ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
            ) as (http, own):
                assert (await http.get(f"https://{address}/")).text == "ok"
                assert (await http.post(f"https://{address}/", content=b"x" * 300_000)).text == "ok"
                assert len(over) == 1
                assert own.clock.reads > 0 == own.clock.stamped_reads  # stamps are taken at read
            async with client() as (http, _):
                with pytest.raises(httpx.ConnectError, match="certificate"):
                    await http.get(f"https://{address}/")

    run(scenario())


def test_without_kernel_stamps_reads_are_stamped_here_and_never_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wire, "request_stamps", lambda sock: False)
    monkeypatch.delattr(select, "epoll")  # as where there is none
    monkeypatch.setattr(passes, "time", None)

    async def scenario() -> None:
        async with serving(answering(OK)) as (address, _), client() as (http, own):
            before = now()
            response = await http.get(
                f"http://{address}/", extensions={"times": (times := Times())}
            )
            assert response.text == "ok"
            assert own.clock.reads > 0 == own.clock.stamped_reads
            assert before < times.sent < times.first_byte < now()

    run(scenario())


def test_what_is_not_spoken_is_refused() -> None:
    with pytest.raises(ValueError, match="HEAD"):
        wire_bytes(httpx.Request("HEAD", "http://localhost/"))
    with pytest.raises(httpx.UnsupportedProtocol):
        run(Transport().handle_async_request(httpx.Request("GET", "ftp://localhost/")))


def test_a_post_of_many_has_the_bytes_that_httpx_would_send() -> None:
    url, headers = (
        httpx.URL("http://host:81/v1/completions?x=1"),
        [("Content-Type", "application/json"), ("X-Team", "blue")],
    )
    made = post_bytes(url, headers)
    for number, body in enumerate((b"{}", "Σ".encode() * 99)):
        own = httpx.Request(
            "POST", url, headers=[*headers, ("X-Request-Id", f"seg.1.{number}")], content=body
        )
        assert made(f"seg.1.{number}", body) == wire_bytes(own)


# --- where reads are cut ---


class _NoWire:
    def send(self, data: bytes, times: Times, flushed: Callable[[], None]) -> None:
        times.sent = 1
        flushed()

    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def close(self) -> None: ...
    def poll(self) -> None: ...


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
PIECES = (b"data: one\n\n", b"data: two\n\ndata: three\n\n", b"data: [DONE]\n\n")
ANSWER = HEAD + b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in PIECES) + b"0\r\n\r\n"
# Where in ANSWER each byte of the body ends.
PLACES = [ANSWER.index(piece) + i + 1 for piece in PIECES for i in range(len(piece))]


async def asked_of(wire: _NoWire) -> tuple[Connection, asyncio.Task[Exchange]]:
    """A connection that waits for the answer's head."""
    connection = Connection()
    connection.wire = wire
    asking = asyncio.ensure_future(connection.request(b"", Times(), 1e9, read_s=None, write_s=None))
    await asyncio.sleep(0)
    return connection, asking


@settings(max_examples=100)
@given(st.lists(st.integers(1, len(ANSWER) - 1), max_size=8), st.booleans())
def test_a_piece_of_the_body_has_the_time_of_the_read_that_brought_it(
    cuts: list[int], is_attached_early: bool
) -> None:
    async def scenario() -> list[tuple[bytes, int]]:
        connection, asking = await asked_of(_NoWire())
        got: list[tuple[bytes, int]] = []
        places = [0, *sorted(set(cuts)), len(ANSWER)]
        for start, end in pairwise(places):
            if asking.done() and is_attached_early:
                asking.result().attach(lambda piece, at: got.append((piece, at)))
            connection.received(ANSWER[start:end], end)
            await asyncio.sleep(0)
        exchange = await asking
        await exchange.attach(lambda piece, at: got.append((piece, at)))
        assert exchange.finish()
        return got

    got = run(scenario())
    assert b"".join(piece for piece, _ in got) == b"".join(PIECES)
    assert all(
        before < after for (_, before), (_, after) in pairwise(got)
    )  # one piece a read, however many chunks
    ends, taken = [*sorted(set(cuts)), len(ANSWER)], 0
    for piece, at in got:
        taken += len(piece)
        assert at == next(end for end in ends if end >= PLACES[taken - 1])


def test_exchanges_go_without_the_garbage_collector() -> None:
    def kept() -> int:
        return sum(isinstance(found, Exchange) for found in gc.get_objects())

    async def scenario() -> int:
        before = kept()
        async with serving(answering(*[OK] * 9)) as (address, _), client() as (_, own):
            url = httpx.URL(f"http://{address}/")
            sent, origin = post_bytes(url, [])("seg.1.0", b"{}"), origin_of(url)
            for _ in range(9):
                exchange = await own.answered(origin, sent, Times(), {})
                await exchange.attach(lambda piece, at: None)
                own.release(exchange, origin)
            assert own.opened == 1
            return kept() - before

    gc.collect()
    gc.disable()  # as in a load worker
    try:
        assert run(scenario()) <= 1  # the connection's latest
    finally:
        gc.enable()


@pytest.mark.parametrize("is_attached", [True, False], ids=["to a sink", "pulled"])
@pytest.mark.parametrize(
    ("rest", "error"),
    [(b"zz\r\n", "not HTTP/1.1"), (b"0\r\n\r\n" + OK, "")],
    ids=["no chunk", "a second answer"],
)
def test_the_good_chunks_of_a_read_are_passed_on_whatever_follows_them(
    rest: bytes, error: str, is_attached: bool
) -> None:
    async def scenario() -> None:
        connection, asking = await asked_of(_NoWire())
        got: list[bytes] = []
        connection.received(HEAD, 1)
        exchange = await asking
        ended = exchange.attach(lambda piece, _: got.append(piece)) if is_attached else None
        connection.received(b"5\r\nhello\r\n6\r\n world\r\n" + rest, 2)
        with pytest.raises(httpx.RemoteProtocolError, match=error) if error else nullcontext():
            if ended:
                await ended
            while (piece := await exchange.next_piece()) is not None:
                got.append(piece)
        assert got == [b"hello world"]
        assert not exchange.finish()

    run(scenario())


def test_without_a_sink_a_megabyte_waits_here_and_a_read_more_at_most() -> None:
    class Paused(_NoWire):
        times = 0

        def pause(self) -> None:
            self.times += 1

    async def scenario() -> None:
        wire = Paused()
        connection, asking = await asked_of(wire)
        connection.received(HEAD, 1)
        exchange = await asking
        chunks = b"10\r\n0123456789abcdef\r\n" * 3000  # 48,000 bytes of body
        for number in range(1, 23):
            connection.received(chunks, number)
            assert wire.times == (number > 21), number  # 21 × 48,000 < 2 ** 20 < 22 × 48,000
        assert await exchange.next_piece() == b"0123456789abcdef" * 3000

    run(scenario())


def test_what_a_sink_failed_on_does_not_come_again() -> None:
    async def scenario() -> None:
        connection, asking = await asked_of(_NoWire())
        got: list[bytes] = []

        def sink(piece: bytes, at: int) -> None:
            if at == 2:
                raise MemoryError
            got.append(piece)

        connection.received(HEAD, 1)
        (await asking).attach(sink)
        with pytest.raises(MemoryError):
            connection.received(b"3\r\none\r\n", 2)
        connection.received(b"3\r\ntwo\r\n", 3)
        assert got == [b"two"]

    run(scenario())


# --- too few descriptors ---


def with_at_most(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """From now on this process opens at most so many connections at a time."""
    real, made, opening = connection.open_plain, list[Connection](), list[object]()

    async def limited(*arguments: Any) -> Connection:
        if len(opening) + sum(each.is_open for each in made) >= most:
            raise OSError(errno.EMFILE, "Too many open files")
        opening.append(arguments)
        made.append(each := await real(*arguments))
        opening.pop()
        return each

    monkeypatch.setattr(connection, "open_plain", limited)


def test_connections_that_opened_are_kept_where_others_did_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_at_most(monkeypatch, 10)

    async def scenario() -> None:
        async with serving(answering(OK, close=False)) as (address, over):
            transport = Transport()
            url = httpx.URL(f"http://{address}")
            with pytest.raises(httpx.ConnectError, match="Too many open files"):
                await transport.open(url, 20)
            assert transport.opened == 10
            async with httpx.AsyncClient(transport=transport) as http:
                answers = await asyncio.gather(*(http.get(url) for _ in range(10)))
            assert [a.status_code for a in answers] == [200] * 10
            assert len(over) == 10

    run(scenario())


@pytest.mark.parametrize("close", [False, True], ids=["connections kept", "connections closed"])
def test_a_request_without_a_descriptor_waits_for_another_s_end(
    monkeypatch: pytest.MonkeyPatch, close: bool
) -> None:
    with_at_most(monkeypatch, 2)
    answer = OK.replace(b"200 OK", b"200 OK\r\nconnection: close") if close else OK

    async def scenario() -> None:
        async with (
            serving(answering(*[answer] * 7, close=close)) as (address, over),
            client() as (http, _),
        ):
            answers = await asyncio.gather(*(http.get(f"http://{address}/") for _ in range(7)))
            assert [a.text for a in answers] == ["ok"] * 7
            assert len(over) == (7 if close else 2)

    run(scenario())


@pytest.mark.parametrize("breaks", [False, True], ids=["goes on", "goes away"])
def test_where_a_server_refuses_more_connections_those_that_opened_are_used(breaks: bool) -> None:
    """It stops listening after two connections; the other requests wait for these. If it goes away,
    they fail as refused ones do."""
    answers = [OK] * 2 if breaks else [OK] * 300

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            await answering(*answers)(reader, writer)
        writer.close()

    async def scenario() -> None:
        server = await asyncio.start_server(one, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        url, transport = httpx.URL(f"http://{host}:{port}/"), Transport()
        await transport.open(url, 2)
        server.close()
        async with httpx.AsyncClient(transport=transport, timeout=5) as http:
            sent = (http.get(url) for _ in range(300))
            found = await asyncio.gather(*sent, return_exceptions=True)
        good = [each.text for each in found if isinstance(each, httpx.Response)]
        failed = [each for each in found if isinstance(each, BaseException)]
        assert good == ["ok"] * (4 if breaks else 300)
        assert all(isinstance(each, httpx.ConnectError) for each in failed)

    run(scenario())


def test_without_any_descriptor_a_request_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with_at_most(monkeypatch, 0)
    with pytest.raises(httpx.ConnectError, match="Too many open files"):
        run(get(answering(OK)))
