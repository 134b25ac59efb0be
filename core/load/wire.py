"""How bytes are moved and stamped: plain TCP through our own sockets, TLS through asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Protocol, cast

from core.load.clock import ANCILLARY_BYTES, ReceiveClock, now, request_stamps
from core.load.passes import ReadPasses

READ_BYTES = 1 << 16


class Receiver(Protocol):
    """Gets the bytes that arrive, with their stamps in perf_counter ns."""

    def received(self, data: bytes, at: int) -> None: ...
    def lost(self, error: OSError | None) -> None: ...


class Times:
    """Times of a request in ns, filled in as it proceeds; 0 until then."""

    __slots__ = ("first_byte", "sent")

    def __init__(self) -> None:
        self.sent = 0
        self.first_byte = 0


class Wire(Protocol):
    """Sends bytes, and hands its receiver those that arrive."""

    def send(self, data: bytes, times: Times, flushed: Callable[[], None]) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def close(self) -> None: ...
    def poll(self) -> None: ...


class PlainWire:
    """TCP through our own socket, so that reads return the kernel's stamps; if they do, the socket
    is read in `passes`."""

    def __init__(
        self, sock: socket.socket, clock: ReceiveClock, passes: ReadPasses, receiver: Receiver
    ) -> None:
        self._sock, self._clock, self._receiver = sock, clock, receiver
        self._loop = asyncio.get_running_loop()
        is_stamped = request_stamps(sock)
        self._ancillary = ANCILLARY_BYTES if is_stamped else 0
        self._watch = passes.add if is_stamped else self._loop.add_reader
        self._unwatch = passes.remove if is_stamped else self._loop.remove_reader
        self._rest = memoryview(b"")
        self._paused = True
        self.resume()

    def send(self, data: bytes, times: Times, flushed: Callable[[], None]) -> None:
        """Send all of `data`, now or as the peer takes it. `times.sent` is the time just before the
        send of the last byte."""
        self._rest, self._times, self._flushed = memoryview(data), times, flushed
        self._write()
        if self._rest:
            self._loop.add_writer(self._sock, self._writable)

    def _write(self) -> None:
        at = now()
        try:
            self._rest = self._rest[self._sock.send(self._rest) :]
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._rest = memoryview(b"")
            self._receiver.lost(error)
            return
        if not self._rest:
            self._times.sent = at
            self._flushed()

    def _writable(self) -> None:
        self._write()
        if not self._rest and self._sock.fileno() >= 0:
            self._loop.remove_writer(self._sock)

    def _readable(self) -> None:
        try:
            data, ancillary, _, _ = self._sock.recvmsg(READ_BYTES, self._ancillary)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._receiver.lost(error)
            return
        if data:
            self._receiver.received(data, self._clock.arrival(ancillary))
        else:
            self._receiver.lost(None)

    def pause(self) -> None:
        if not self._paused:
            self._paused = True
            self._unwatch(self._sock)

    def resume(self) -> None:
        if self._paused and self._sock.fileno() >= 0:
            self._watch(self._sock, self._readable)
            self._paused = False

    def poll(self) -> None:
        """Read now: if a reset arrives together with data, uvloop reports only the data."""
        if not self._paused:
            self._readable()

    def close(self) -> None:
        if self._sock.fileno() < 0:
            return
        self.pause()
        self._loop.remove_writer(self._sock)
        self._sock.close()


class TlsWire(asyncio.Protocol):
    """TLS through asyncio; stamps are taken when the event loop hands over the bytes."""

    def __init__(self, clock: ReceiveClock, receiver: Receiver) -> None:
        self._clock, self._receiver = clock, receiver
        self._flushed: Callable[[], None] | None = None
        self._full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has its methods

    def send(self, data: bytes, times: Times, flushed: Callable[[], None]) -> None:
        times.sent = now()
        self._transport.write(data)
        if self._full:
            self._flushed = flushed
        else:
            flushed()

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        if self._flushed:
            self._flushed()

    def data_received(self, data: bytes) -> None:
        self._receiver.received(data, self._clock.arrival([]))

    def connection_lost(self, exc: Exception | None) -> None:
        self._receiver.lost(exc if isinstance(exc, OSError) else None)

    def pause(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._transport.pause_reading()

    def resume(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._transport.resume_reading()

    def poll(self) -> None:
        """Nothing to do: asyncio reports resets."""

    def close(self) -> None:
        self._transport.abort()
