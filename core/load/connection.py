"""One HTTP/1.1 connection whose bytes come stamped."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Callable

import httptools
import httpx

from core.load.clock import ReceiveClock, now
from core.load.passes import ReadPasses
from core.load.wire import PlainWire, Times, TlsWire, Wire

MAX_HEAD_BYTES = 1 << 16
MAX_QUEUED_BYTES = 1 << 20

Sink = Callable[[bytes, int], None]


class Connection:
    """One request at a time: `request` sends it and waits for the head, then the body goes to a
    sink or is pulled.

    Without a sink at most 1 MiB waits here, the rest in the kernel.
    """

    def __init__(self) -> None:
        self.wire: Wire
        self.is_open = True
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self._busy = False
        self._pieces: list[bytes] = []  # of the body, in the read that is being parsed
        self.on_body = self._pieces.append  # called by the parser, once a chunk

    # --- one request

    async def request(
        self,
        data: bytes,
        times: Times,
        max_bytes: float,
        *,
        read_s: float | None,
        write_s: float | None,
    ) -> None:
        """Send `data`, return when the answer's head is here. httpx's errors; a longer answer than
        `max_bytes` too."""
        loop = asyncio.get_running_loop()
        self.status, self.headers = 0, []
        self._max_bytes = self._left = max_bytes
        self._head_left = MAX_HEAD_BYTES
        self._sink: Sink | None = None
        self._until_closed = False
        self._queue: deque[tuple[bytes, int]] = deque()
        self._queued = 0
        self._waiter: asyncio.Future[None] | None = None
        self._ended: asyncio.Future[None] = loop.create_future()
        self._head: asyncio.Future[None] = loop.create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._times, self._last, self._read_s = times, now(), read_s
        self._busy = True
        await self._send(data, write_s)
        self._timer = loop.call_later(read_s, self._watch) if read_s else None
        await self._head

    async def _send(self, data: bytes, write_s: float | None) -> None:
        flushed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.wire.send(
            data, self._times, lambda: None if flushed.done() else flushed.set_result(None)
        )
        if flushed.done():
            return
        try:
            await asyncio.wait(
                {flushed, self._head}, timeout=write_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            flushed.cancel()
        if not self._times.sent and not self._head.done():
            self._close(
                httpx.WriteTimeout(f"the server did not take the request within {write_s:g} s")
            )

    def attach(self, sink: Sink) -> asyncio.Future[None]:
        """From now on the body goes to `sink(bytes, arrived_at_ns)`; the future that ends with the
        body."""
        while self._queue:
            sink(*self._queue.popleft())
        self._sink = sink
        self.wire.resume()
        return self._ended

    async def next_piece(self) -> bytes | None:
        """The next piece of the body; None at its end."""
        while not self._queue:
            if self._ended.done():
                self._ended.result()
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        piece, _ = self._queue.popleft()
        self._queued -= len(piece)
        if self._queued <= MAX_QUEUED_BYTES:
            self.wire.resume()
        return piece

    def header(self, name: bytes) -> str:
        """A header of the answer, by its name in lower case; "" where there is none."""
        return next(
            (value.decode("latin-1") for known, value in self.headers if known.lower() == name), ""
        )

    def finish(self) -> bool:
        """The caller is done with the answer; true if the connection can carry another."""
        if (
            self._busy or not self._times.sent
        ):  # an answer that came before its request was sent whole
            self.close()
        else:
            self.wire.resume()
        return self.is_open

    def close(self) -> None:
        """Close the socket now, whatever is under way."""
        self._close(httpx.ReadError("the connection was closed here"))

    def poll(self, silent_since: int) -> None:
        """See whether the connection still stands, if nothing has come since `silent_since`
        (ns)."""
        if self._busy and self._last < silent_since:
            self.wire.poll()

    # --- from the wire

    def received(self, data: bytes, at: int) -> None:
        """`data` arrived at `at` (ns)."""
        if not self._busy:  # nothing was asked
            self.close()
            return
        times = self._times
        if not times.first_byte:
            times.first_byte = at
        self._last = at
        self._left -= len(data)
        if (
            self._left < 0
        ):  # endless chunks, comments, trailers: no callback of the parser sees them all
            self._close(
                httpx.RemoteProtocolError(
                    f"over {self._max_bytes} bytes came, more than an answer may have"
                )
            )
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._close(httpx.RemoteProtocolError(f"not HTTP/1.1: {error.__context__ or error}"))
        if self._pieces:
            piece = b"".join(self._pieces)
            self._pieces.clear()
            self._pass_on(piece, at)
        if not self.status:
            self._head_left -= len(data)
            if self._head_left < 0:
                self._close(
                    httpx.RemoteProtocolError(f"a response head of over {MAX_HEAD_BYTES} bytes")
                )

    def lost(self, error: OSError | None) -> None:
        """The connection ended."""
        if error is not None:
            self._close(httpx.ReadError(str(error)))
        elif self._busy and self._until_closed:
            self.on_message_complete()
            self._close(httpx.ReadError("closed"))
        elif self._busy and self.status:
            self._close(
                httpx.RemoteProtocolError(
                    "the server closed the connection before the answer's end"
                )
            )
        else:
            self._close(
                httpx.RemoteProtocolError("the server closed the connection without an answer")
            )

    def _pass_on(self, piece: bytes, at: int) -> None:
        if self._sink is not None:
            self._sink(piece, at)
            return
        self._queue.append((piece, at))
        self._queued += len(piece)
        if self._queued > MAX_QUEUED_BYTES:
            self.wire.pause()
        self._wake()

    # --- from the parser

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.status:  # else it is a trailer
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if not self._busy:
            raise ValueError("a second answer to one request")
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            self.headers = []
            return
        self.status = status
        names = {name.lower() for name, _ in self.headers}
        self._until_closed = not names & {
            b"content-length",
            b"transfer-encoding",
        } and status not in (204, 304)
        if not self._head.done():
            self._head.set_result(None)

    def on_message_complete(self) -> None:
        if not self.status or not self._busy:  # 100 Continue
            return
        self._busy = False
        self._stop_timer()
        if self._until_closed or not self._parser.should_keep_alive():
            self._close(httpx.ReadError("closed"))
        if not self._ended.done():
            self._ended.set_result(None)
        self._wake()

    # --- ends

    def _watch(self) -> None:
        """One timer a request, not one a read."""
        assert self._read_s is not None
        idle = (now() - self._last) / 1e9
        if idle >= self._read_s:
            self._close(httpx.ReadTimeout(f"no bytes for {self._read_s:g} s"))
        else:
            self._timer = asyncio.get_running_loop().call_later(self._read_s - idle, self._watch)

    def _close(self, error: httpx.TransportError) -> None:
        if self.is_open:
            self.is_open = False
            self.wire.close()
        if not self._busy:
            return
        self._busy = False
        self._stop_timer()
        for future in (self._head, self._ended):
            if not future.done():
                future.set_exception(error)
                future.exception()  # whoever waits is told; nobody waiting is no fault
        self._wake()

    def _stop_timer(self) -> None:
        timer = getattr(self, "_timer", None)
        if timer is not None:
            timer.cancel()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


async def open_plain(
    addresses: list[tuple[int, object]], clock: ReceiveClock, passes: ReadPasses
) -> Connection:
    """Connect to the first of `addresses` (family, address) that answers. OSError of the last."""
    loop = asyncio.get_running_loop()
    failure: OSError = OSError("no address")
    for family, address in addresses:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(sock, address)  # type: ignore[arg-type]  # getaddrinfo's own address
            connection = Connection()
            connection.wire = PlainWire(sock, clock, passes, connection)
            return connection
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
    raise failure


async def open_tls(
    host: str, port: int, context: ssl.SSLContext, clock: ReceiveClock
) -> Connection:
    """Connect and shake hands. OSError (ssl.SSLError is one) where that fails."""
    connection = Connection()
    loop = asyncio.get_running_loop()
    _, wire = await loop.create_connection(
        lambda: TlsWire(clock, connection), host, port, ssl=context, server_hostname=host
    )
    connection.wire = wire
    return connection
