"""A server on raw sockets that answers as its prompt asks: correctly, or in one of many hostile
ways.

Every attack is an endless or a short stream of pieces, with the error that the client must report.
"""

from __future__ import annotations

import functools
import gzip
import itertools
import json
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from support.sockets import BLOCK, SocketServer, request, reset

ASKED = 4  # tokens that the client must request
STEP_S = 0.05  # between two dribbled bytes
BOMB_BYTES = 1 << 26
RESET = b"RST"
SILENCE = b"..."
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
# A body that ends when the connection does.
UNFRAMED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e"
DONE = "[DONE]"

Pieces = Iterable[bytes]


@dataclass(frozen=True)
class Attack:
    """`error`: how the request's error begins, or several ways; "" if the answer is accepted."""

    pieces: Callable[[], Pieces]
    error: str | tuple[str, ...]


def token(text: str, used: object = None) -> str:
    usage = (
        "" if used is None else f', "usage": {{"prompt_tokens": 3, "completion_tokens": {used}}}'
    )
    return f'{{"choices": [{{"index": 0, "text": {json.dumps(text)}}}]{usage}}}'


def sse(*payloads: str | bytes) -> bytes:
    return b"".join(
        b"data: " + (p if isinstance(p, bytes) else p.encode()) + b"\n\n" for p in payloads
    )


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def stream(*payloads: str | bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return STREAM + chunk(sse(*payloads)) + end


GOOD = stream(token("a", 1), token("b", 2), token("c", 3), DONE)


def _says(*pieces: bytes) -> Callable[[], Pieces]:
    return lambda: pieces


def _goes_on(begin: bytes, piece: bytes) -> Callable[[], Pieces]:
    """`begin`, then `piece` forever, in blocks."""
    block = piece * max(1, BLOCK // len(piece))
    return lambda: itertools.chain([begin], itertools.repeat(block))


def _dribbles(begin: bytes, pieces: Callable[[], Pieces]) -> Callable[[], Pieces]:
    """`begin`, then `pieces` byte by byte, each after STEP_S."""

    def one_by_one() -> Iterator[bytes]:
        yield begin
        for byte in itertools.chain.from_iterable(pieces()):
            time.sleep(STEP_S)
            yield bytes([byte])

    return one_by_one


def _bomb(head: bytes) -> Callable[[], Pieces]:
    """Endless gzip: every 64 KiB unpack to 64 MiB."""
    return lambda: itertools.chain(
        [head + b"Content-Encoding: gzip\r\n\r\n"], itertools.repeat(_bomb_block())
    )


@functools.cache
def _bomb_block() -> bytes:
    return gzip.compress(bytes(BOMB_BYTES))


def _head(*lines: str) -> bytes:
    return "".join(f"{line}\r\n" for line in ("HTTP/1.1 200 OK", *lines, "")).encode()


NEST = b"[" * 200_000
HTML = _head("Content-Type: text/html")
STALLED = "stalled: no token for"
NO_JSON = "not the expected JSON: "
NO_HTTP = "RemoteProtocolError: not HTTP/1.1: "
LONG_HEAD = "RemoteProtocolError: a response head of over 65536 bytes"
TOO_MUCH = "stream cut: over "

ATTACKS: dict[str, Attack] = {
    # the head
    "endless headers": Attack(_goes_on(b"HTTP/1.1 200 OK\r\n", b"x-more: y\r\n"), LONG_HEAD),
    "one endless header": Attack(_goes_on(b"HTTP/1.1 200 OK\r\nx: ", b"y"), LONG_HEAD),
    "endless status line": Attack(_goes_on(b"HTTP/1.1 200 ", b"o"), LONG_HEAD),
    "endless 1xx": Attack(_goes_on(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), LONG_HEAD),
    "switching protocols": Attack(
        _says(_head("Upgrade: x").replace(b"200 OK", b"101 Now")), "RemoteProtocolError: "
    ),
    "no HTTP": Attack(_goes_on(b"", b"SSH-2.0-OpenSSH_9.6\r\n"), NO_HTTP),
    "negative length": Attack(_says(_head("Content-Length: -5"), b"hello"), NO_HTTP),
    "two lengths": Attack(
        _says(_head("Content-Length: 5", "Content-Length: 50"), b"hello"), NO_HTTP
    ),
    "length and chunks": Attack(
        _says(_head("Content-Length: 5", "Transfer-Encoding: chunked"), b"hello"), NO_HTTP
    ),
    "length past 64 bits": Attack(_says(_head(f"Content-Length: {10**30}")), NO_HTTP),
    "a length that does not come": Attack(
        _says(_head(f"Content-Length: {10**18}"), b"data: "), "stream cut: "
    ),
    "redirect": Attack(
        _says(b"HTTP/1.1 302 There\r\nLocation: http://a/\r\nContent-Length: 0\r\n\r\n"), "HTTP 302"
    ),
    "two answers": Attack(_says(GOOD + GOOD), ""),
    # the type of the body
    "gzip bomb": Attack(
        _bomb(STREAM.removesuffix(b"Transfer-Encoding: chunked\r\n\r\n")), "content-encoding: gzip"
    ),
    "gzip bomb as an error": Attack(_bomb(b"HTTP/1.1 500 Bad\r\n"), "HTTP 500"),
    "HTML": Attack(
        _goes_on(HTML, b"<p>"), "content-type: text/html is not an event stream: <p><p>"
    ),
    "plain JSON": Attack(
        _says(_head("Content-Type: application/json"), b"{}"),
        "content-type: application/json is no",
    ),
    "endless error": Attack(_goes_on(b"HTTP/1.1 500 Bad\r\n\r\n", b"no!"), "HTTP 500: no!no!"),
    # its framing
    "chunk size past 64 bits": Attack(
        _says(STREAM, b"f" * 20 + b"\r\n"), "stream cut: not HTTP/1.1: "
    ),
    "negative chunk size": Attack(_says(STREAM, b"-1\r\n"), "stream cut: not HTTP/1.1: "),
    "endless chunk size": Attack(_goes_on(STREAM, b"0"), "stream cut: "),
    "endless chunk extension": Attack(_goes_on(STREAM + b"5;", b"x"), TOO_MUCH),
    "endless trailers": Attack(_goes_on(stream(token("a"), DONE, end=b"0\r\n"), b"x: y\r\n"), ""),
    "one endless trailer": Attack(_goes_on(stream(token("a"), DONE, end=b"0\r\nx: "), b"y"), ""),
    # its events
    "a line without end": Attack(
        _goes_on(UNFRAMED + b"data: ", b"x"), "EventTooLong: a line of over"
    ),
    "an event without end": Attack(
        _goes_on(UNFRAMED, b"data: %b\n" % bytes(1000)), "EventTooLong: an event of over"
    ),
    "endless comments": Attack(_goes_on(UNFRAMED, b":\n\n"), TOO_MUCH),
    "endless empty events": Attack(_goes_on(UNFRAMED, sse("{}")), TOO_MUCH),
    "endless tokens": Attack(_goes_on(UNFRAMED, sse(token("a"))), (TOO_MUCH, "wrong usage: ")),
    "endless large tokens": Attack(_goes_on(UNFRAMED, sse(token("a" * 500_000))), TOO_MUCH),
    "NaN": Attack(_says(stream(token("a", "NaN"), DONE)), NO_JSON),
    "Infinity": Attack(_says(stream(token("a", "Infinity"), DONE)), NO_JSON),
    "1e999": Attack(_says(stream(token("a", "1e999"), DONE)), NO_JSON),
    "negative usage": Attack(_says(stream(token("a", -1), DONE)), ""),
    "usage past 64 bits": Attack(_says(stream(token("a", 10**30), DONE)), NO_JSON),
    "usage in the billions": Attack(
        _says(stream(token("a", 4 * 10**9), DONE)), "wrong usage: 4000000000 tokens"
    ),
    "usage that goes back": Attack(_says(stream(token("a", 3), token("b", 1), DONE)), ""),
    "deep nesting": Attack(_says(stream(b'{"x": ' + NEST, DONE)), NO_JSON),
    "deep error": Attack(_says(stream(b'{"error": ' + NEST, DONE)), NO_JSON),
    "no UTF-8": Attack(_says(stream(b'{"choices": [{"text": "\xff"}]}', DONE)), NO_JSON),
    "lone surrogate": Attack(_says(stream(b'{"choices": [{"text": "\\ud800"}]}', DONE)), ""),
    "two ends": Attack(_says(stream(token("a", 1), DONE, DONE)), ""),
    "tokens after the end": Attack(
        _says(stream(token("a", 1), DONE, token("b", 2), DONE)), "tokens after the end: "
    ),
    "escapes in an error": Attack(_says(stream(json.dumps({"error": ESCAPES}))), "server error: "),
    "escapes in an error status": Attack(
        _says(b"HTTP/1.1 400 No\r\n\r\n" + ESCAPES.encode()), "HTTP 400: "
    ),
    "escapes in a text": Attack(_says(stream(token(ESCAPES, 1), DONE)), ""),
    # its pace
    "no answer": Attack(_says(SILENCE), STALLED),
    "a head and no more": Attack(_says(STREAM, SILENCE), STALLED),
    "dribbled head": Attack(_dribbles(b"", _goes_on(b"HTTP/1.1 200 OK\r\nx: ", b"y")), STALLED),
    "dribbled 1xx": Attack(
        _dribbles(b"", _goes_on(b"", b"HTTP/1.1 100 Continue\r\n\r\n")), STALLED
    ),
    "dribbled comments": Attack(_dribbles(STREAM, _goes_on(b"", b"2\r\n:\n\r\n")), STALLED),
    "dribbled error": Attack(_dribbles(b"HTTP/1.1 500 Bad\r\n\r\n", _goes_on(b"", b"no")), STALLED),
    "dribbled end": Attack(
        _dribbles(stream(token("a", 1), DONE, end=b"0\r\n"), _goes_on(b"", b"x: y\r\n")), ""
    ),
    # resets
    "reset at the request": Attack(_says(RESET), "ReadError: "),
    "reset in the head": Attack(_says(STREAM[:30], RESET), "ReadError: "),
    "reset after the head": Attack(_says(STREAM, RESET), "ReadError: "),
    "reset in an event": Attack(_says(STREAM + chunk(sse(token("a"))[:9]), RESET), "ReadError: "),
    "reset before the end": Attack(_says(stream(token("a", 1), DONE, end=b""), RESET), ""),
}


class Hostile(SocketServer):
    """A running server. `sent`: bytes sent for each attack."""

    def __init__(self) -> None:
        self.sent: dict[str, int] = {}
        _bomb_block()  # made before a client waits for it
        super().__init__(self._talk)

    def _talk(self, peer: socket.socket) -> None:
        while True:
            _, body = request(peer)
            self._answer(peer, json.loads(body)["prompt"] if body else "")

    def _answer(self, peer: socket.socket, prompt: str) -> None:
        if prompt not in ATTACKS:
            peer.sendall(GOOD)
            return
        self.sent[prompt] = 0
        for piece in ATTACKS[prompt].pieces():
            if piece is RESET:
                reset(peer)
                break
            if piece is SILENCE:
                peer.recv(1)  # until the client gives up
                break
            peer.sendall(piece)
            self.sent[prompt] += len(piece)
        peer.close()
