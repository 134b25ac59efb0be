"""An httpx transport whose bytes come stamped: a connection pool with httpx's timeouts and errors,
and one retry if a kept connection is stale."""

from __future__ import annotations

import asyncio
import errno
import math
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import httpx

from core.load import connection
from core.load.clock import ReceiveClock
from core.load.connection import Connection, Exchange
from core.load.passes import ReadPasses
from core.load.wire import Times

Origin = tuple[str, str, int]


class NoneToOpen(httpx.ConnectError):
    """No connection more: this machine has no file descriptor left, or the server refused it."""


class Transport(httpx.AsyncBaseTransport):
    """HTTP/1.1 for httpx.AsyncClient or for direct use. Request bodies must be bytes (each request
    is sent in one piece).

    An answer of more than `max_answer_bytes`, head, framing and trailers included, is
    httpx.RemoteProtocolError. A request's extensions may hold "times" (a Times that is filled in).
    The response's extensions hold "exchange": `exchange.attach(sink)` takes the body with its
    timestamps.
    """

    def __init__(
        self,
        *,
        max_connections: int = 0,
        tls: ssl.SSLContext | None = None,
        max_answer_bytes: float = math.inf,
    ) -> None:
        self._max_answer_bytes = max_answer_bytes
        self._tls = tls
        self._idle: dict[Origin, list[Connection]] = {}
        self._all: set[Connection] = set()
        self._slots = asyncio.Semaphore(max_connections) if max_connections else None
        self._addresses: dict[Origin, list[tuple[int, object]]] = {}
        self._passes: ReadPasses | None = None
        self._opening = 0  # connections for requests that wait for them
        self._short: list[
            asyncio.Future[None]
        ] = []  # requests that no connection could be opened for
        self.clock = ReceiveClock()
        self.opened = 0
        self.retries = 0

    async def open(self, url: httpx.URL, count: int) -> None:
        """Open `count` connections before they are needed. Those that open are kept even if others
        fail: httpx.ConnectError or httpx.ConnectTimeout of the first that did."""
        origin = origin_of(url)
        limit = asyncio.Semaphore(64)  # a listen queue may be short

        async def one() -> Connection:
            async with limit:
                return await self._connect(origin, 10.0)

        found = await asyncio.gather(*(one() for _ in range(count)), return_exceptions=True)
        opened = [each for each in found if isinstance(each, Connection)]
        self._idle.setdefault(origin, []).extend(opened)
        for failure in found:
            if isinstance(failure, BaseException):
                raise failure

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        origin, extensions = origin_of(request.url), request.extensions
        timeout = extensions.get("timeout", {})
        await self._slot(timeout.get("pool"))
        try:
            exchange = await self.answered(
                origin, wire_bytes(request), extensions.get("times") or Times(), timeout
            )
        except BaseException:
            self.free_slot()
            raise
        return httpx.Response(
            exchange.status,
            headers=exchange.headers,
            stream=_Body(self, exchange, origin),
            extensions={"http_version": b"HTTP/1.1", "exchange": exchange},
            request=request,
        )

    async def answered(
        self, origin: Origin, data: bytes, times: Times, timeout: Mapping[str, float | None]
    ) -> Exchange:
        """Send `data` and return when the head of its answer is here; `release` the exchange after
        the body.

        `timeout` as in httpx. A kept connection that turns out to be closed before any byte came is
        replaced once. Where no other can be opened, since descriptors are out or the server
        refuses, the request waits until another request ends. httpx's errors.
        """
        kept = self._kept(origin)
        if kept is not None:
            try:
                return await self._request(kept, data, times, timeout)
            except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
                if times.first_byte:
                    raise
                self.retries += 1
                times.sent = 0
        live = await self._new_or_freed(origin, timeout.get("connect"))
        return await self._request(live, data, times, timeout)

    def poll(self, silent_since: int) -> None:
        """Look for unnoticed resets among the connections without bytes since `silent_since`
        (ns)."""
        for live in list(self._all):
            live.poll(silent_since)

    async def aclose(self) -> None:
        """Close every socket, also those in use."""
        for live in list(self._all):
            live.close()
        self._all.clear()
        self._idle.clear()

    async def _request(
        self, live: Connection, data: bytes, times: Times, timeout: Mapping[str, float | None]
    ) -> Exchange:
        try:
            return await live.request(
                data,
                times,
                self._max_answer_bytes,
                read_s=timeout.get("read"),
                write_s=timeout.get("write"),
            )
        except BaseException:
            self._drop(live)
            raise

    def _kept(self, origin: Origin) -> Connection | None:
        idle = self._idle.get(origin, [])
        while idle:
            live = idle.pop()
            if live.is_open:
                return live
            self._drop(live)
        return None

    async def _new_or_freed(self, origin: Origin, timeout_s: float | None) -> Connection:
        while True:
            self._opening += 1
            try:
                return await self._connect(origin, timeout_s)
            except NoneToOpen as error:
                # One may have become free since this request looked for one.
                if kept := self._kept(origin):
                    return kept
                if not self._others_are_busy():
                    self._none_will_be_free(str(error))
                    raise httpx.ConnectError(str(error)) from None
            except httpx.TransportError:
                self._one_is_free()
                raise
            finally:
                self._opening -= 1
            free = asyncio.get_running_loop().create_future()
            self._short.append(free)
            await free
            if kept := self._kept(origin):
                return kept

    def _others_are_busy(self) -> bool:
        """Whether some other request has a connection, or waits for one that opens."""
        idle = sum(len(each) for each in self._idle.values())
        return len(self._all) > idle or self._opening > 1

    def _one_is_free(self) -> None:
        while self._short:
            free = self._short.pop(0)
            if not free.done():
                free.set_result(None)
                return

    def _none_will_be_free(self, why: str) -> None:
        for free in self._short:
            if not free.done():
                free.set_exception(httpx.ConnectError(why))
        self._short.clear()

    async def _connect(self, origin: Origin, timeout_s: float | None) -> Connection:
        scheme, host, port = origin
        try:
            async with asyncio.timeout(timeout_s):
                if scheme == "https":
                    self._tls = self._tls or ssl.create_default_context()
                    live = await connection.open_tls(host, port, self._tls, self.clock)
                else:
                    live = await connection.open_plain(
                        await self._resolved(origin), self.clock, self._passes_here()
                    )
        except TimeoutError:
            raise httpx.ConnectTimeout(
                f"no connection to {host}:{port} within {timeout_s:g} s"
            ) from None
        except OSError as error:
            is_short = error.errno in (errno.EMFILE, errno.ENFILE, errno.ECONNREFUSED)
            kind = NoneToOpen if is_short else httpx.ConnectError
            raise kind(f"{host}:{port}: {error}") from None
        self.opened += 1
        self._all.add(live)
        return live

    def _passes_here(self) -> ReadPasses:
        """The passes of the running event loop, which may not be the last connection's."""
        loop = asyncio.get_running_loop()
        if self._passes is None or self._passes.loop is not loop:
            self._passes = ReadPasses(loop)
        return self._passes

    async def _resolved(self, origin: Origin) -> list[tuple[int, object]]:
        if origin not in self._addresses:
            loop = asyncio.get_running_loop()
            found = await loop.getaddrinfo(origin[1], origin[2], type=socket.SOCK_STREAM)
            self._addresses[origin] = [(family, address) for family, _, _, _, address in found]
        return self._addresses[origin]

    async def _slot(self, timeout_s: float | None) -> None:
        if self._slots is None:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._slots.acquire()
        except TimeoutError:
            raise httpx.PoolTimeout(f"no free connection within {timeout_s:g} s") from None

    def free_slot(self) -> None:
        if self._slots is not None:
            self._slots.release()

    def release(self, exchange: Exchange, origin: Origin) -> None:
        """The exchange is over: keep its connection if it can carry another."""
        if exchange.finish():
            self._idle.setdefault(origin, []).append(exchange.connection)
            self._one_is_free()
        else:
            self._drop(exchange.connection)

    def _drop(self, live: Connection) -> None:
        live.close()
        self._all.discard(live)
        self._one_is_free()


class _Body(httpx.AsyncByteStream):
    def __init__(self, transport: Transport, exchange: Exchange, origin: Origin) -> None:
        self._transport, self._exchange, self._origin = transport, exchange, origin
        self._released = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (piece := await self._exchange.next_piece()) is not None:
            yield piece

    async def aclose(self) -> None:
        if not self._released:
            self._released = True
            self._transport.release(self._exchange, self._origin)
            self._transport.free_slot()


def wire_bytes(request: httpx.Request) -> bytes:
    """The bytes of the request. ValueError if this transport does not support its method."""
    if request.method in ("HEAD", "CONNECT"):
        raise ValueError(f"{request.method} is not supported")
    return b"%b\r\n%b" % (_head(request, request.headers.raw), request.content)


def post_bytes(url: httpx.URL, headers: Sequence[tuple[str, str]]) -> Callable[[str, bytes], bytes]:
    """Like `wire_bytes`, for many POSTs that differ only in X-Request-Id and body: httpx builds the
    head once."""
    request = httpx.Request("POST", url, headers=headers)
    head = _head(
        request,
        [(name, value) for name, value in request.headers.raw if name.lower() != b"content-length"],
    )

    def made(request_id: str, body: bytes) -> bytes:
        return b"%bX-Request-Id: %b\r\nContent-Length: %d\r\n\r\n%b" % (
            head,
            request_id.encode(),
            len(body),
            body,
        )

    return made


def _head(request: httpx.Request, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    lines = b"".join(b"%b: %b\r\n" % header for header in headers)
    return b"%b %b HTTP/1.1\r\n%b" % (request.method.encode(), request.url.raw_path, lines)


def origin_of(url: httpx.URL) -> Origin:
    """Scheme, host and port of `url`. httpx.UnsupportedProtocol."""
    if url.scheme not in ("http", "https"):
        raise httpx.UnsupportedProtocol(f"{url}: expected http:// or https://")
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)
