"""A server on raw sockets that answers each request as the first segment of its path says, as fakes
of other people's servers do."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from support.sockets import SocketServer, request, reset

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


class Scripted(SocketServer):
    """A running server. A script's bytes are sent, its floats slept; then the connection closes.
    `tokenize`: what /tokenize answers, by scenario; `asked`: the bodies that it got."""

    def __init__(
        self, scripts: Mapping[str, Script], tokenize: Mapping[str, bytes] | None = None
    ) -> None:
        self.asked: list[dict[str, Any]] = []
        self._scripts, self._tokens = scripts, tokenize or {}
        super().__init__(self._talk)

    def _talk(self, peer: socket.socket) -> None:
        path, body = request(peer)
        name = path.split("/")[1]
        if path.endswith("/tokenize"):
            self.asked.append(json.loads(body))
            reply(peer, self._tokens.get(name))
        else:
            play(peer, self._scripts[name]())


def reply(peer: socket.socket, body: bytes | None) -> None:
    status = b"404 Not Found" if body is None else b"200 OK"
    head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nConnection: close\r\n" % status
    peer.sendall(head + b"Content-Length: %d\r\n\r\n%b" % (len(body or b""), body or b""))


def play(peer: socket.socket, pieces: Iterable[Piece]) -> None:
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for piece in pieces:
        if isinstance(piece, float):
            time.sleep(piece)
        elif isinstance(piece, bytes):
            peer.sendall(piece)
        else:
            reset(peer)
            return
