"""Reads the sockets that have data in passes, with at least 0.2 ms between two passes."""

from __future__ import annotations

import asyncio
import select
import socket
import time
from collections.abc import Callable

from core.load.clock import now

PAUSE_NS = 200_000


class ReadPasses:
    """The sockets of one event loop whose bytes the kernel stamps (Linux).

    Reading later changes no stamp, and one pass over several sockets costs less than a wakeup for
    each. A pause holds up the loop, by at most 0.2 ms. Events of one stream that arrive within a
    pause are read together, and share the last one's stamp.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._epoll: (
            select.epoll
        )  # exists while there are sockets; the loop watches it instead of them
        self._reads: dict[int, Callable[[], None]] = {}
        self._ended = 0

    def add(self, sock: socket.socket, read: Callable[[], None]) -> None:
        """Call `read` once per pass while `sock` has data; in rare cases it has none. OSError."""
        is_first = not self._reads
        if is_first:
            self._epoll = select.epoll()
        self._epoll.register(sock, select.EPOLLIN)
        if is_first:
            self.loop.add_reader(self._epoll, self._pass)
        self._reads[sock.fileno()] = read

    def remove(self, sock: socket.socket) -> None:
        """Stop reading `sock`; call it before the socket is closed."""
        del self._reads[sock.fileno()]
        self._epoll.unregister(sock)
        if not self._reads:
            self.loop.remove_reader(self._epoll)
            self._epoll.close()

    def _pass(self) -> None:
        pause = self._ended + PAUSE_NS - now()
        if pause > 0:
            time.sleep(pause / 1e9)  # not a timer: uvloop's have a resolution of 1 ms
        for number, _ in self._epoll.poll(0, len(self._reads)):
            read = self._reads.get(number)
            if read is None:  # an earlier read in this pass closed it
                continue
            try:
                read()
            except Exception as error:  # as the loop does: report it, and go on with the others
                self.loop.call_exception_handler(
                    {"message": f"reading socket {number} failed", "exception": error}
                )
        self._ended = now()
