"""A server on raw sockets: one thread a connection, and what a request holds."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import struct
import threading
from collections.abc import Callable

BLOCK = 1 << 16


class SocketServer:
    """A running server. `talk` gets each connection, which closes when it returns."""

    def __init__(self, talk: Callable[[socket.socket], None]) -> None:
        class Connection(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    talk(self.request)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            request_queue_size = 256

        self._server = Server(("127.0.0.1", 0), Connection)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}
        )
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def begun(peer: socket.socket) -> tuple[str, bytes, int]:
    """The path of the next request, what has come of its body, and the length that is announced.
    ConnectionError when the client has gone."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += some(peer)
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = sum(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
    return head.split(b" ")[1].decode(), body, length


def request(peer: socket.socket) -> tuple[str, bytes]:
    """The path and the whole body of the next request."""
    path, body, length = begun(peer)
    while len(body) < length:
        body += some(peer)
    return path, body


def some(peer: socket.socket) -> bytes:
    if not (data := peer.recv(BLOCK)):
        raise ConnectionError("the client has gone")
    return data


def reset(peer: socket.socket) -> None:
    """What closes the connection will reset it."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
