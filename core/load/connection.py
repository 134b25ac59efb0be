"""One HTTP/1.1 connection whose bytes come stamped, and the exchange that it carries."""

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
    """A socket. It carries one exchange at a time and hands it the bytes that arrive."""

    def __init__(self) -> None:
        self.wire: Wire
        self.is_open = True
        self._exchange: Exchange | None = None

    async def request(
        self,
        data: bytes,
        times: Times,
        max_bytes: float,
        *,
        read_s: float | None,
        write_s: float | None,
    ) -> Exchange:
        """Send `data` and return the exchange once the head of the answer is here.

        httpx's errors, also for an answer longer than `max_bytes`.
        """
        exchange = self._exchange = Exchange(self, times, max_bytes)
        await exchange.start(data, read_s, write_s)
        return exchange

    def hang_up(self) -> None:
        """Close the socket; the exchange is not informed."""
        if self.is_open:
            self.is_open = False
            self.wire.close()

    def close(self) -> None:
        """Close the socket now; an exchange under way fails."""
        self.hang_up()
        if self._exchange is not None:
            self._exchange.fail(httpx.ReadError("the connection was closed here"))

    def poll(self, silent_since: int) -> None:
        """If an exchange has had no bytes since `silent_since` (ns), read: a reset may have gone
        unnoticed."""
        exchange = self._exchange
        if exchange is not None and not exchange.is_over and exchange.last_byte < silent_since:
            self.wire.poll()

    # --- from the wire

    def received(self, data: bytes, at: int) -> None:
        """`data` arrived at `at` (ns)."""
        exchange = self._exchange
        if exchange is None or exchange.is_over:  # nothing was asked
            self.hang_up()
        else:
            exchange.received(data, at)

    def lost(self, error: OSError | None) -> None:
        """The peer closed the connection, or it broke."""
        if self._exchange is not None:
            self._exchange.lost(error)
        self.hang_up()


class Exchange:
    """One request and its answer: the head first, then the body, which goes to a sink or is pulled.

    Without a sink at most 1 MiB of the body waits here; the rest stays in the kernel.
    """

    __slots__ = (
        "_ended",
        "_head",
        "_head_left",
        "_left",
        "_max_bytes",
        "_parser",
        "_pieces",
        "_queue",
        "_read_s",
        "_settling",
        "_sink",
        "_timer",
        "_until_closed",
        "_waiter",
        "connection",
        "headers",
        "is_over",
        "last_byte",
        "on_body",
        "queued_bytes",
        "status",
        "times",
    )

    def __init__(self, connection: Connection, times: Times, max_bytes: float) -> None:
        loop = asyncio.get_running_loop()
        self.connection, self.times = connection, times
        self.status = 0  # of the answer; 0 until its head is here
        self.headers: list[tuple[bytes, bytes]] = []
        self.is_over = False
        self.last_byte = now()  # ns; the start of the exchange until a byte comes
        self._head: asyncio.Future[None] = loop.create_future()
        self._ended: asyncio.Future[None] = loop.create_future()
        self._until_closed = False  # the end of the body is the end of the connection
        self._max_bytes = self._left = max_bytes
        self._head_left = MAX_HEAD_BYTES
        self._read_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._settling: asyncio.TimerHandle | None = None
        self._sink: Sink | None = None
        self._queue: deque[tuple[bytes, int]] = deque()
        self.queued_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._pieces: list[bytes] = []  # of the body, in the read that is being parsed
        self.on_body = self._pieces.append  # the parser calls it once a chunk
        self._parser = httptools.HttpResponseParser(self)

    async def start(self, data: bytes, read_s: float | None, write_s: float | None) -> None:
        """Send the request and return when the head of the answer is here."""
        await self._send(data, write_s)
        if read_s and not self.is_over:
            self._read_s = read_s
            self._timer = asyncio.get_running_loop().call_later(read_s, self._watch)
        await self._head

    async def _send(self, data: bytes, write_s: float | None) -> None:
        flushed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.connection.wire.send(
            data, self.times, lambda: None if flushed.done() else flushed.set_result(None)
        )
        if flushed.done():
            return
        try:
            await asyncio.wait(
                {flushed, self._head}, timeout=write_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            flushed.cancel()
        if not self.times.sent and not self._head.done():
            self.fail(
                httpx.WriteTimeout(f"the server did not take the request within {write_s:g} s")
            )

    def attach(self, sink: Sink) -> asyncio.Future[None]:
        """Send the body to `sink(bytes, arrived_at_ns)` from now on; the future ends with the
        body."""
        while self._queue:
            sink(*self._queue.popleft())
        self._sink = sink
        self.connection.wire.resume()
        return self._ended

    def settle(self, within_s: float) -> None:
        """The body says all that is needed: what `attach` returned is done in `within_s` seconds,
        even if the body goes on."""
        if not self.is_over:
            self._settling = asyncio.get_running_loop().call_later(within_s, self._settled)

    def _settled(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)

    async def next_piece(self) -> bytes | None:
        """The next piece of the body; None at its end."""
        while not self._queue:
            if self._ended.done():
                self._ended.result()
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        piece, _ = self._queue.popleft()
        self.queued_bytes -= len(piece)
        if self.queued_bytes <= MAX_QUEUED_BYTES:
            self.connection.wire.resume()
        return piece

    def header(self, name: bytes) -> str:
        """A header of the answer, by its name in lower case; "" if there is none."""
        return next(
            (value.decode("latin-1") for known, value in self.headers if known.lower() == name), ""
        )

    def finish(self) -> bool:
        """The caller is done with the answer; true if the connection can carry another request."""
        # An answer may have come before its request was sent whole.
        if self.is_over and self.times.sent:
            self.connection.wire.resume()
        else:
            self.connection.close()
        return self.connection.is_open

    # --- from the connection

    def received(self, data: bytes, at: int) -> None:
        """`data` arrived at `at` (ns)."""
        if not self.times.first_byte:
            self.times.first_byte = at
        self.last_byte = at
        self._left -= len(data)
        # Counted here: no callback of the parser sees all chunks, comments and trailers.
        if self._left < 0:
            text = f"over {self._max_bytes} bytes came, more than an answer may have"
            self.fail(httpx.RemoteProtocolError(text))
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.fail(httpx.RemoteProtocolError(f"not HTTP/1.1: {error.__context__ or error}"))
        if self._pieces:
            piece = b"".join(self._pieces)
            self._pieces.clear()
            if self._sink is not None:
                self._sink(piece, at)
            else:
                self._keep(piece, at)
        if not self.status:
            self._head_left -= len(data)
            if self._head_left < 0:
                text = f"a response head of over {MAX_HEAD_BYTES} bytes"
                self.fail(httpx.RemoteProtocolError(text))

    def lost(self, error: OSError | None) -> None:
        """The connection ended."""
        if error is not None:
            self.fail(httpx.ReadError(str(error)))
        elif self._until_closed:
            self.on_message_complete()
        else:
            missing = "before the answer's end" if self.status else "without an answer"
            self.fail(httpx.RemoteProtocolError(f"the server closed the connection {missing}"))

    def fail(self, error: httpx.TransportError) -> None:
        """Close the connection; those who wait get `error`."""
        self.connection.hang_up()
        if self.is_over:
            return
        self._leave()
        for future in (self._head, self._ended):
            if not future.done():
                future.set_exception(error)
                future.exception()  # mark it as retrieved: it is no fault if nobody waits
        self._wake()

    def _keep(self, piece: bytes, at: int) -> None:
        self._queue.append((piece, at))
        self.queued_bytes += len(piece)
        if self.queued_bytes > MAX_QUEUED_BYTES:
            self.connection.wire.pause()
        self._wake()

    # --- from the parser

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.status:  # else it is a trailer
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self.is_over:
            raise ValueError("a second answer to one request")
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            self.headers = []
            return
        self.status = status
        names = {name.lower() for name, _ in self.headers}
        has_length = not names.isdisjoint({b"content-length", b"transfer-encoding"})
        self._until_closed = not has_length and status not in (204, 304)
        if not self._head.done():
            self._head.set_result(None)

    def on_message_complete(self) -> None:
        if not self.status or self.is_over:  # 100 Continue
            return
        if self._until_closed or not self._parser.should_keep_alive():
            self.connection.hang_up()
        self._leave()
        if not self._ended.done():
            self._ended.set_result(None)
        self._wake()

    # --- ends

    def _watch(self) -> None:
        """One timer a request, not one a read."""
        assert self._read_s is not None
        idle = (now() - self.last_byte) / 1e9
        if idle >= self._read_s:
            self.fail(httpx.ReadTimeout(f"no bytes for {self._read_s:g} s"))
        else:
            self._timer = asyncio.get_running_loop().call_later(self._read_s - idle, self._watch)

    def _leave(self) -> None:
        self.is_over = True
        # The parser and this object hold each other, and load workers collect no garbage.
        del self._parser
        for timer in (self._timer, self._settling):
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


async def open_plain(
    addresses: list[tuple[int, object]], clock: ReceiveClock, passes: ReadPasses
) -> Connection:
    """Connect to the first of `addresses` (family, address) that answers. OSError from the last."""
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
    """Connect and do the TLS handshake. OSError (ssl.SSLError is one) if that fails."""
    connection = Connection()
    loop = asyncio.get_running_loop()
    _, wire = await loop.create_connection(
        lambda: TlsWire(clock, connection), host, port, ssl=context, server_hostname=host
    )
    connection.wire = wire
    return connection
