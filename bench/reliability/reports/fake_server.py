"""A server that speaks the OpenAI protocol as odd servers do. The first path segment names the
scenario: `/hidden_tail/v1/completions`.

Every scenario is a generator of pieces: bytes are sent, floats are seconds to wait, "RST" resets
the connection.
"""

from __future__ import annotations

import json
import re
import socket
import socketserver
import struct
from collections.abc import Callable, Iterator

Request = tuple[bytes, bytes]  # head and body
Piece = bytes | float | str
Pieces = Iterator[Piece]
Scenario = Callable[[Request], Pieces]

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
JSON = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b"
)
EMPTY = b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def ev(obj: object, end: bytes = b"\n\n") -> bytes:
    return b"data: " + (obj if isinstance(obj, bytes) else json.dumps(obj).encode()) + end


def tok(text: str, used: int | None = None, **more: object) -> dict[str, object]:
    d: dict[str, object] = {"choices": [{"index": 0, "text": text, "finish_reason": None, **more}]}
    if used is not None:
        d["usage"] = {"prompt_tokens": 3, "completion_tokens": used}
    return d


def chat(delta: object, used: int | None = None, finish: str | None = None) -> dict[str, object]:
    d: dict[str, object] = {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
    if used is not None:
        d["usage"] = {"prompt_tokens": 3, "completion_tokens": used}
    return d


def usage(n: int, choices: object = ()) -> dict[str, object]:
    return {"choices": choices, "usage": {"prompt_tokens": 3, "completion_tokens": n}}


DONE = b"data: [DONE]\n\n"
S: dict[str, Scenario] = {}


def scenario(f: Scenario) -> Scenario:
    S[f.__name__] = f
    return f


# --- good baseline: 10 tokens, 20 ms apart
@scenario
def good(req: Request) -> Pieces:
    yield SSE
    for i in range(10):
        yield 0.02
        yield ev(tok("w ", i + 1))
    yield DONE


# --- tokens whose text is empty (special tokens under ignore_eos; held back by a parser)
@scenario
def hidden_tail(req: Request) -> Pieces:  # 10 visible, then 40 hidden, all 20 ms apart
    yield SSE
    for i in range(50):
        yield 0.02
        yield ev(tok("w " if i < 10 else "", i + 1))
    yield DONE


@scenario
def hidden_head(req: Request) -> Pieces:  # 10 hidden (role + hidden reasoning), then 10 visible
    yield SSE
    for i in range(20):
        yield 0.05
        yield ev(tok("" if i < 10 else "w ", i + 1))
    yield DONE


@scenario
def all_hidden(req: Request) -> Pieces:  # usage says 10 tokens, no text at all
    yield SSE
    for i in range(10):
        yield 0.02
        yield ev(tok("", i + 1))
    yield DONE


@scenario
def text_then_tool_calls(req: Request) -> Pieces:  # 2 text tokens, then 18 as tool call
    yield SSE
    for i in range(20):
        yield 0.02
        yield ev(
            chat(
                {"content": "w "}
                if i < 2
                else {"tool_calls": [{"index": 0, "function": {"arguments": "a"}}]},
                i + 1,
            )
        )
    yield DONE


@scenario
def role_first(req: Request) -> Pieces:  # the role at once, the first token after 300 ms
    yield SSE
    yield ev(chat({"role": "assistant", "content": ""}, 0))
    yield 0.3
    for i in range(10):
        yield ev(chat({"content": "w "}, i + 1))
        yield 0.02
    yield DONE


@scenario
def reasoning_content(req: Request) -> Pieces:  # 5 thought tokens, 5 said
    yield SSE
    for i in range(10):
        yield 0.02
        yield ev(chat({"reasoning_content" if i < 5 else "content": "w "}, i + 1))
    yield DONE


@scenario
def reasoning_details(req: Request) -> Pieces:
    yield SSE
    for i in range(10):
        yield 0.02
        yield ev(
            chat(
                {"reasoning_details": [{"type": "reasoning.text", "text": "w"}]}
                if i < 5
                else {"content": "w "},
                i + 1,
            )
        )
    yield DONE


# --- everything at once
@scenario
def one_event_50(req: Request) -> Pieces:  # 50 tokens in a single event
    yield SSE
    yield 0.5
    yield ev(tok("w " * 50, 50)) + DONE


@scenario
def buffered(
    req: Request,
) -> Pieces:  # a proxy holds the stream back: one segment
    yield SSE
    yield 0.5
    yield b"".join(ev(tok("w ", i + 1)) for i in range(50)) + DONE


@scenario
def one_seen_of_20(req: Request) -> Pieces:  # usage says 20, a single visible event came
    yield SSE
    yield 0.02
    yield ev(tok("w w w "))
    yield 0.4
    yield ev(usage(20))
    yield DONE


# --- errors in a 200 stream
@scenario
def err_object_flat(req: Request) -> Pieces:  # older vLLM: {"object": "error", ...}
    yield SSE
    for i in range(3):
        yield 0.02
        yield ev(tok("w ", i + 1))
    yield ev(
        {
            "object": "error",
            "message": "engine died",
            "type": "InternalServerError",
            "param": None,
            "code": 500,
        }
    )
    yield DONE


@scenario
def err_object_flat_first(req: Request) -> Pieces:
    yield SSE
    yield ev(
        {
            "object": "error",
            "message": "prompt too long",
            "type": "BadRequestError",
            "param": None,
            "code": 400,
        }
    )
    yield DONE


@scenario
def err_field(req: Request) -> Pieces:  # older llama.cpp: a field called "error"
    yield SSE
    for i in range(3):
        yield 0.02
        yield ev(tok("w ", i + 1))
    yield b'error: {"code":400,"message":"context size exceeded"}\n\n'
    yield DONE


@scenario
def err_field_first(req: Request) -> Pieces:
    yield SSE
    yield b'error: {"code":400,"message":"context size exceeded"}\n\n'
    yield DONE


@scenario
def err_event(req: Request) -> Pieces:  # event: error
    yield SSE
    for i in range(3):
        yield 0.02
        yield ev(tok("w ", i + 1))
    yield b'event: error\ndata: {"message": "worker lost", "code": 503}\n\n'
    yield DONE


@scenario
def err_object(req: Request) -> Pieces:
    yield SSE
    for i in range(3):
        yield 0.02
        yield ev(tok("w ", i + 1))
    yield ev({"error": {"message": "engine died", "type": "InternalServerError", "code": 500}})
    yield DONE


@scenario
def finish_abort(req: Request) -> Pieces:
    yield SSE
    for i in range(3):
        yield 0.02
        yield ev(tok("w ", i + 1))
    yield ev(tok("", 3, **{"finish_reason": "abort"}))
    yield DONE


@scenario
def short_stop(req: Request) -> Pieces:  # ignores ignore_eos: 5 of 50
    yield SSE
    for i in range(5):
        yield 0.02
        yield ev(tok("w ", i + 1))
    yield ev(tok("", 5, **{"finish_reason": "stop"}))
    yield DONE


# --- shapes
@scenario
def choices_null(req: Request) -> Pieces:
    yield SSE
    for _ in range(10):
        yield 0.02
        yield ev(tok("w "))
    yield ev(usage(10, None))
    yield DONE


@scenario
def data_null(req: Request) -> Pieces:
    yield SSE
    for i in range(10):
        yield 0.02
        yield ev(b"null")
        yield ev(tok("w ", i + 1))
    yield DONE


@scenario
def float_usage(req: Request) -> Pieces:
    yield SSE
    for _ in range(10):
        yield 0.02
        yield ev(tok("w "))
    yield ev({"choices": [], "usage": {"prompt_tokens": 3.0, "completion_tokens": 10.0}})
    yield DONE


@scenario
def choice_null_inside(req: Request) -> Pieces:
    yield SSE
    for _ in range(10):
        yield 0.02
        yield ev(tok("w "))
    yield ev({"choices": [None], "usage": {"prompt_tokens": 3, "completion_tokens": 10}})
    yield DONE


@scenario
def delta_null(req: Request) -> Pieces:
    yield SSE
    for i in range(10):
        yield 0.02
        yield ev(chat({"content": "w "}, i + 1))
    yield ev(chat(None, 10, "stop"))
    yield DONE


@scenario
def usage_only(req: Request) -> Pieces:
    yield SSE
    for _ in range(10):
        yield 0.02
        yield ev(tok("w "))
    yield ev(usage(10))
    yield DONE


@scenario
def no_usage(req: Request) -> Pieces:
    yield SSE
    for _ in range(10):
        yield 0.02
        yield ev(tok("w "))
    yield DONE


@scenario
def no_usage_multi(req: Request) -> Pieces:  # 5 events of 2 words and no usage
    yield SSE
    for _ in range(5):
        yield 0.02
        yield ev(tok("w w "))
    yield DONE


@scenario
def error_null(req: Request) -> Pieces:
    yield SSE
    for i in range(10):
        yield 0.02
        yield ev({**tok("w ", i + 1), "error": None})
    yield DONE


@scenario
def error_empty(req: Request) -> Pieces:  # error: "" / {} / false on every good chunk
    yield SSE
    for i in range(10):
        yield 0.02
        yield ev({**tok("w ", i + 1), "error": ["", {}, False][i % 3]})
    yield DONE


@scenario
def message_chunks(req: Request) -> Pieces:  # base_resp style: error in 200 JSON
    yield b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
    yield json.dumps({"error": {"message": "quota exceeded"}}).encode()


# --- ends
def ten() -> Pieces:
    for i in range(10):
        yield 0.02
        yield ev(tok("w ", i + 1))


@scenario
def no_done(req: Request) -> Pieces:
    yield SSE
    yield from ten()
    yield ev(tok("", 10, **{"finish_reason": "stop"}))


@scenario
def done_no_blank(req: Request) -> Pieces:
    yield SSE
    yield from ten()
    yield b"data: [DONE]\n"


@scenario
def done_no_newline(req: Request) -> Pieces:
    yield SSE
    yield from ten()
    yield b"data: [DONE]"


@scenario
def done_trailing_space(req: Request) -> Pieces:
    yield SSE
    yield from ten()
    yield b"data: [DONE] \n\n"


@scenario
def done_then_open(req: Request) -> Pieces:  # [DONE] comes, the connection stays open
    yield CHUNKED
    for p in ten():
        yield b"%x\r\n%b\r\n" % (len(p), p) if isinstance(p, bytes) else p
    yield b"%x\r\n%b\r\n" % (len(DONE), DONE)
    yield 30.0
    yield b"0\r\n\r\n"


@scenario
def done_then_reset(req: Request) -> Pieces:  # [DONE] comes, then RST instead of the last chunk
    yield CHUNKED
    for p in ten():
        yield b"%x\r\n%b\r\n" % (len(p), p) if isinstance(p, bytes) else p
    yield b"%x\r\n%b\r\n" % (len(DONE), DONE)
    yield 0.3
    yield "RST"


@scenario
def done_then_cut(req: Request) -> Pieces:  # [DONE] comes, then FIN without the last chunk
    yield CHUNKED
    for p in ten():
        yield b"%x\r\n%b\r\n" % (len(p), p) if isinstance(p, bytes) else p
    yield b"%x\r\n%b\r\n" % (len(DONE), DONE)


@scenario
def usage_after_done(req: Request) -> Pieces:
    yield SSE
    for _ in range(10):
        yield 0.02
        yield ev(tok("w "))
    yield DONE
    yield ev(usage(10))


# --- framing
@scenario
def crlf(req: Request) -> Pieces:
    yield SSE
    for i in range(10):
        yield 0.02
        yield ev(tok("w ", i + 1), b"\r\n\r\n")
    yield b"data: [DONE]\r\n\r\n"


@scenario
def no_space(req: Request) -> Pieces:
    yield SSE
    for i in range(10):
        yield 0.02
        yield b"data:" + json.dumps(tok("w ", i + 1)).encode() + b"\n\n"
    yield b"data:[DONE]\n\n"


@scenario
def comments(req: Request) -> Pieces:
    yield SSE
    yield b": ping\n\n"
    for i in range(10):
        yield 0.02
        yield b": keep-alive\n\n" + ev(tok("w ", i + 1))
    yield DONE


@scenario
def empty_data(req: Request) -> Pieces:
    yield SSE
    yield b"data:\n\n"
    for i in range(10):
        yield 0.02
        yield b"data: \n\n" + ev(tok("w ", i + 1))
    yield DONE


@scenario
def split_utf8(req: Request) -> Pieces:  # a character cut between two packets
    yield SSE
    for i in range(10):
        yield 0.02
        data = (
            b"data: "
            + json.dumps(tok("\u4f60\U0001f600", i + 1), ensure_ascii=False).encode()
            + b"\n\n"
        )
        at = data.index("\U0001f600".encode()) + 2
        yield data[:at]
        yield 0.005
        yield data[at:]
    yield DONE


@scenario
def half_char_text(
    req: Request,
) -> Pieces:  # half an emoji per event
    yield SSE
    for i in range(10):
        yield 0.02
        yield ev(tok("w ", 2 * i + 1))
        yield ev(
            b'{"choices":[{"index":0,"text":"\\ud83d"}],"usage":{"prompt_tokens":3,"completion_tokens":%d}}'
            % (2 * i + 2)
        )
    yield DONE


@scenario
def http10(req: Request) -> Pieces:
    yield b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    yield from ten()
    yield DONE


# --- status
@scenario
def s429(req: Request) -> Pieces:
    body = b'{"error":{"message":"slow down x"}}'
    yield JSON.replace(b"200 OK", b"429 Too Many Requests") % (len(body), body)


@scenario
def s307(req: Request) -> Pieces:
    where = b"http://127.0.0.1/other/v1/completions/"
    yield b"HTTP/1.1 307 Temporary Redirect\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n" % where


@scenario
def s500_empty(req: Request) -> Pieces:
    yield b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"


@scenario
def early_answer(req: Request) -> Pieces:  # answers before the request has come whole
    yield from good(req)


class H(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        import time

        s = self.request
        try:
            data = b""
            while b"\r\n\r\n" not in data:
                more = s.recv(65536)
                if not more:
                    return
                data += more
            head, _, body = data.partition(b"\r\n\r\n")
            line = head.split(b"\r\n")[0].decode()
            path = line.split(" ")[1]
            name = path.split("/")[1].split("?")[0]
            if name not in ("early_answer",):
                m = re.search(rb"(?im)^content-length: (\d+)", head)
                while m and len(body) < int(m.group(1)):
                    body += s.recv(65536)
            if path.endswith("/models"):
                out = MODELS.get(name, b'{"object":"list","data":[{"id":"m"}]}')
                s.sendall(JSON % (len(out), out))
                return
            if path.endswith("/tokenize"):
                tokens = TOKENIZE.get(name)
                if tokens is None:
                    s.sendall(
                        b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
                    )
                else:
                    s.sendall(JSON % (len(tokens), tokens))
                return
            f = S.get(name) or S.get(ALIAS.get(name, ""))
            if f is None:
                s.sendall(EMPTY)
                return
            for p in f((head, body)):
                if isinstance(p, float):
                    time.sleep(p)
                elif p == "RST":
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    s.close()
                    return
                else:
                    s.sendall(p)
        except OSError:
            pass


MODELS = {
    "models_empty": b'{"object":"list","data":[]}',
    "models_array": b'[{"id":"m"}]',
    "models_null": b'{"object":"list","data":null}',
    "models_two": b'{"data":[{"id":"a"},{"id":"b"}]}',
}
TOKENIZE = {
    "tok_empty": b'{"tokens":[]}',
    "tok_two": b'{"tokens":[1,2,3,4,5,6,7,8,9,10]}',
    "tok_content": b'{"tokens":[{"id":1,"piece":"a"}]}',
}
ALIAS = {"tok_empty": "no_usage", "tok_two": "no_usage", "tok_content": "no_usage"}


class T(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 256
