"""When sockets are read: all that have something in one pass, the next pass no sooner than 0.2 ms
later."""

from __future__ import annotations

import asyncio
import select
import socket
import time
from collections.abc import Callable

from core.load.clock import now

PAUSE_NS = 200_000


class ReadPasses:
    """The sockets of one event loop whose bytes the kernel stamps: Linux.

    Reading them later moves no stamp, and a pass over several costs less than a waking for each.
    The loop is held up by at most one pause. Events of one stream that come within a pause are read
    together, and share the last one's stamp.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._epoll: select.epoll  # while there are sockets; the loop watches it in their place
        self._reads: dict[int, Callable[[], None]] = {}
        self._ended = 0

    def add(self, sock: socket.socket, read: Callable[[], None]) -> None:
        """Call `read` once a pass while `sock` has something; rarely it finds nothing. OSError."""
        is_first = not self._reads
        if is_first:
            self._epoll = select.epoll()
        self._epoll.register(sock, select.EPOLLIN)
        if is_first:
            self.loop.add_reader(self._epoll, self._pass)
        self._reads[sock.fileno()] = read

    def remove(self, sock: socket.socket) -> None:
        """No longer; before the socket is closed."""
        del self._reads[sock.fileno()]
        self._epoll.unregister(sock)
        if not self._reads:
            self.loop.remove_reader(self._epoll)
            self._epoll.close()

    def _pass(self) -> None:
        pause = self._ended + PAUSE_NS - now()
        if pause > 0:
            time.sleep(pause / 1e9)  # not on the loop: uvloop's timers count whole milliseconds
        for number, _ in self._epoll.poll(0, len(self._reads)):
            read = self._reads.get(number)
            if read is None:  # an earlier read of this pass closed it
                continue
            try:
                read()
            except Exception as error:  # the loop's way with a callback: told, and the others go on
                self.loop.call_exception_handler(
                    {"message": f"reading socket {number} failed", "exception": error}
                )
        self._ended = now()
