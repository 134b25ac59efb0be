"""A server that records its requests, heads and bodies, over plain HTTP or TLS. It answers three
tokens at once."""

from __future__ import annotations

import json
import ssl
import threading
from dataclasses import dataclass
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
ANSWER = (
    b"".join(b"data: %b\n\n" % json.dumps(e).encode() for e in [*EVENTS, USAGE])
    + b"data: [DONE]\n\n"
)


@dataclass(frozen=True)
class Asked:
    """One request; header names are in lower case, `body` is None if there was none."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any] | None


class Recording:
    """`asked`: every request so far. `is_fickle`: close each connection after an answer, without
    announcing it."""

    def __init__(self, certificate: Path | None = None, *, is_fickle: bool = False) -> None:
        self.asked: list[Asked] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self.asked, is_fickle))
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


def _handler(asked: list[Asked], is_fickle: bool) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._take(None)
            self._answer("application/json", b'{"data": [{"id": "m"}]}')

        def do_POST(self) -> None:
            self._take(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            if self.path.startswith("/v1/"):
                self._answer("text/event-stream", ANSWER)
            else:
                self.send_error(404)

        def _take(self, body: dict[str, Any] | None) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked.append(Asked(self.path, headers, body))

        def _answer(self, kind: str, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            self.close_connection |= is_fickle

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the tests read `asked`."""

    return Handler
