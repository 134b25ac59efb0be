"""A server on raw sockets that answers each request as the first segment of its path says, as fakes
of other people's servers do."""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

CLOSED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
CHUNKED = CLOSED.replace(b"Connection: close", b"Transfer-Encoding: chunked")
RESET = "reset"
DONE = b"data: [DONE]\n\n"

Piece = bytes | float | str
Script = Callable[[], Iterable[Piece]]


def event(data: Any, end: bytes = b"\n\n") -> bytes:
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + end


def token(text: str, used: int | None = None, finish: str | None = None) -> bytes:
    found: dict[str, Any] = {"choices": [{"index": 0, "text": text, "finish_reason": finish}]}
    if used is not None:
        found["usage"] = {"prompt_tokens": 3, "completion_tokens": used}
    return event(found)


def usage(tokens: float) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": tokens}})


def chunks(*pieces: Piece) -> list[Piece]:
    return [b"%x\r\n%b\r\n" % (len(p), p) if isinstance(p, bytes) else p for p in pieces]


class Scripted:
    """A running server. A script's bytes are sent, its floats slept; then the connection closes.
    `tokenize`: what /tokenize answers, by scenario; `asked`: the bodies that it got."""

    def __init__(
        self, scripts: Mapping[str, Script], tokenize: Mapping[str, bytes] | None = None
    ) -> None:
        self.asked: list[dict[str, Any]] = []
        tokens, asked = tokenize or {}, self.asked

        class Connection(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    path, body = _request(self.request)
                    name = path.split("/")[1]
                    if path.endswith("/tokenize"):
                        asked.append(json.loads(body))
                        _reply(self.request, tokens.get(name))
                    else:
                        _play(self.request, scripts[name]())

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            request_queue_size = 64

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


def _request(peer: socket.socket) -> tuple[str, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        data += _some(peer)
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = sum(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
    while len(body) < length:
        body += _some(peer)
    return head.split(b" ")[1].decode(), body


def _some(peer: socket.socket) -> bytes:
    if not (data := peer.recv(1 << 16)):
        raise ConnectionError("the client has gone")
    return data


def _reply(peer: socket.socket, body: bytes | None) -> None:
    status = b"404 Not Found" if body is None else b"200 OK"
    head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nConnection: close\r\n" % status
    peer.sendall(head + b"Content-Length: %d\r\n\r\n%b" % (len(body or b""), body or b""))


def _play(peer: socket.socket, pieces: Iterable[Piece]) -> None:
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for piece in pieces:
        if isinstance(piece, float):
            time.sleep(piece)
        elif isinstance(piece, bytes):
            peer.sendall(piece)
        else:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return
