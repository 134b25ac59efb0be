"""A server that records its requests, heads and bodies, over plain HTTP or TLS. It answers three
tokens at once."""

from __future__ import annotations

import json
import ssl
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

EVENTS = [
    {
        "choices": [{"index": 0, "text": text, "delta": {"content": text}}],
        "usage": {"completion_tokens": used},
    }
    for text, used in (("a", 1), ("bc", 3))  # the second event carries two tokens
]
USAGE = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3}}
ANSWER = [
    *(b"data: %b\n\n" % json.dumps(e).encode() for e in [*EVENTS, USAGE]),
    b"data: [DONE]\n\n",
]


@dataclass(frozen=True)
class Asked:
    """One request; header names are in lower case, `body` is None if there was none."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any] | None
    names: list[str] = field(default_factory=list)  # of the headers, in lower case, repeats too


@dataclass(frozen=True)
class Refusal:
    """An answer to every stream that is asked for."""

    status: int
    body: bytes = b""
    location: str = ""


class Listener(ThreadingHTTPServer):
    request_queue_size = 1024
    """A client that opens 100 connections at once waits for none of them. socketserver's own queue
    of 5 drops some, and the kernel knocks again after 1, 3, 7 s."""


class Recording:
    """`asked`: every request so far. `is_fickle`: close each connection after an answer, without
    announcing it. `pause_s`: between two events. `models`: the answer to every GET. `refusal`: the
    answer to every stream."""

    def __init__(
        self,
        certificate: Path | None = None,
        *,
        is_fickle: bool = False,
        pause_s: float = 0.0,
        models: bytes = b'{"data": [{"id": "m"}]}',
        refusal: Refusal | None = None,
    ) -> None:
        self.asked: list[Asked] = []
        handler = _handler(self.asked, is_fickle, pause_s, models, refusal)
        self._server = Listener(("127.0.0.1", 0), handler)
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def posted(self) -> list[Asked]:
        """The requests with a body, which ask for streams."""
        return [asked for asked in self.asked if asked.body is not None]


def _handler(
    asked: list[Asked], is_fickle: bool, pause_s: float, models: bytes, refusal: Refusal | None
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._take(None)
            self._answer("application/json", [models])

        def do_POST(self) -> None:
            self._take(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            if refusal:
                self._refuse(refusal)
            elif "completions" in self.path:
                self._answer("text/event-stream", ANSWER)
            else:
                self.send_error(404)

        def _take(self, body: dict[str, Any] | None) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            names = [name.lower() for name in self.headers]
            asked.append(Asked(self.path, headers, body, names))

        def _refuse(self, refusal: Refusal) -> None:
            self.send_response(refusal.status)
            if refusal.location:
                self.send_header("Location", refusal.location)
            self.send_header("Content-Length", str(len(refusal.body)))
            self.end_headers()
            self.wfile.write(refusal.body)

        def _answer(self, kind: str, pieces: list[bytes]) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(sum(map(len, pieces))))
            self.end_headers()
            for piece in pieces if pause_s else [b"".join(pieces)]:
                self.wfile.write(piece)
                time.sleep(pause_s)
            self.close_connection |= is_fickle

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the tests read `asked`."""

    return Handler
