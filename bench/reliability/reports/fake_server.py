"""A server that speaks the OpenAI protocol as odd servers do. The first path segment names the
scenario: `/hidden_tail/v1/completions`.

Every scenario is a generator of pieces: bytes are sent, floats are seconds to wait, "RST" resets
the connection.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator

from support.scripted import CHUNKED, DONE, Piece, play, reply
from support.scripted import CLOSED as SSE
from support.scripted import event as ev
from support.sockets import SocketServer, begun, some

Pieces = Iterator[Piece]
Scenario = Callable[[], Pieces]


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


S: dict[str, Scenario] = {}


def scenario(f: Scenario) -> Scenario:
    S[f.__name__] = f
    return f


# --- good baseline: 10 tokens, 20 ms apart
@scenario
def good() -> Pieces:
    yield SSE
    for i in range(10):
        yield 0.02
        yield ev(tok("w ", i + 1))
    yield DONE


# --- tokens whose text is empty (special tokens under ignore_eos; held back by a parser)
@scenario
def hidden_tail() -> Pieces:  # 10 visible, then 40 hidden, all 20 ms apart
    yield SSE
    for i in range(50):
        yield 0.02
        yield ev(tok("w " if i < 10 else "", i + 1))
    yield DONE


@scenario
def hidden_head() -> Pieces:  # 10 hidden (role + hidden reasoning), then 10 visible
    yield SSE
    for i in range(20):
        yield 0.05
        yield ev(tok("" if i < 10 else "w ", i + 1))
    yield DONE


@scenario
def all_hidden() -> Pieces:  # usage says 10 tokens, no text at all
    yield SSE
    for i in range(10):
        yield 0.02
        yield ev(tok("", i + 1))
    yield DONE


@scenario
def text_then_tool_calls() -> Pieces:  # 2 text tokens, then 18 as tool call
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
def role_first() -> Pieces:  # the role at once, the first token after 300 ms
    yield SSE
    yield ev(chat({"role": "assistant", "content": ""}, 0))
    yield 0.3
    for i in range(10):
        yield ev(chat({"content": "w "}, i + 1))
        yield 0.02
    yield DONE


@scenario
def reasoning_content() -> Pieces:  # 5 thought tokens, 5 said
    yield SSE
    for i in range(10):
        yield 0.02
        yield ev(chat({"reasoning_content" if i < 5 else "content": "w "}, i + 1))
    yield DONE


@scenario
def reasoning_details() -> Pieces:
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
def one_event_50() -> Pieces:  # 50 tokens in a single event
    yield SSE
    yield 0.5
    yield ev(tok("w " * 50, 50)) + DONE


@scenario
def buffered() -> Pieces:  # a proxy holds the stream back: one segment
    yield SSE
    yield 0.5
    yield b"".join(ev(tok("w ", i + 1)) for i in range(50)) + DONE


@scenario
def one_seen_of_20() -> Pieces:  # usage says 20, a single visible event came
    yield SSE
    yield 0.02
    yield ev(tok("w w w "))
    yield 0.4
    yield ev(usage(20))
    yield DONE


# --- errors in a 200 stream
@scenario
def err_object_flat() -> Pieces:  # older vLLM: {"object": "error", ...}
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
def err_object_flat_first() -> Pieces:
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
def err_field() -> Pieces:  # older llama.cpp: a field called "error"
    yield SSE
    for i in range(3):
        yield 0.02
        yield ev(tok("w ", i + 1))
    yield b'error: {"code":400,"message":"context size exceeded"}\n\n'
    yield DONE


@scenario
def err_field_first() -> Pieces:
    yield SSE
    yield b'error: {"code":400,"message":"context size exceeded"}\n\n'
    yield DONE


@scenario
def err_event() -> Pieces:  # event: error
    yield SSE
    for i in range(3):
        yield 0.02
        yield ev(tok("w ", i + 1))
    yield b'event: error\ndata: {"message": "worker lost", "code": 503}\n\n'
    yield DONE


@scenario
def err_object() -> Pieces:
    yield SSE
    for i in range(3):
        yield 0.02
        yield ev(tok("w ", i + 1))
    yield ev({"error": {"message": "engine died", "type": "InternalServerError", "code": 500}})
    yield DONE


@scenario
def finish_abort() -> Pieces:
    yield SSE
    for i in range(3):
        yield 0.02
        yield ev(tok("w ", i + 1))
    yield ev(tok("", 3, **{"finish_reason": "abort"}))
    yield DONE


@scenario
def short_stop() -> Pieces:  # ignores ignore_eos: 5 of 50
    yield SSE
    for i in range(5):
        yield 0.02
        yield ev(tok("w ", i + 1))
    yield ev(tok("", 5, **{"finish_reason": "stop"}))
    yield DONE


# --- shapes
@scenario
def choices_null() -> Pieces:
    yield SSE
    for _ in range(10):
        yield 0.02
        yield ev(tok("w "))
    yield ev(usage(10, None))
    yield DONE


@scenario
def data_null() -> Pieces:
    yield SSE
    for i in range(10):
        yield 0.02
        yield ev(b"null")
        yield ev(tok("w ", i + 1))
    yield DONE


@scenario
def float_usage() -> Pieces:
    yield SSE
    for _ in range(10):
        yield 0.02
        yield ev(tok("w "))
    yield ev({"choices": [], "usage": {"prompt_tokens": 3.0, "completion_tokens": 10.0}})
    yield DONE


@scenario
def choice_null_inside() -> Pieces:
    yield SSE
    for _ in range(10):
        yield 0.02
        yield ev(tok("w "))
    yield ev({"choices": [None], "usage": {"prompt_tokens": 3, "completion_tokens": 10}})
    yield DONE


@scenario
def delta_null() -> Pieces:
    yield SSE
    for i in range(10):
        yield 0.02
        yield ev(chat({"content": "w "}, i + 1))
    yield ev(chat(None, 10, "stop"))
    yield DONE


@scenario
def usage_only() -> Pieces:
    yield SSE
    for _ in range(10):
        yield 0.02
        yield ev(tok("w "))
    yield ev(usage(10))
    yield DONE


@scenario
def no_usage() -> Pieces:
    yield SSE
    for _ in range(10):
        yield 0.02
        yield ev(tok("w "))
    yield DONE


@scenario
def no_usage_multi() -> Pieces:  # 5 events of 2 words and no usage
    yield SSE
    for _ in range(5):
        yield 0.02
        yield ev(tok("w w "))
    yield DONE


@scenario
def error_null() -> Pieces:
    yield SSE
    for i in range(10):
        yield 0.02
        yield ev({**tok("w ", i + 1), "error": None})
    yield DONE


@scenario
def error_empty() -> Pieces:  # error: "" / {} / false on every good chunk
    yield SSE
    for i in range(10):
        yield 0.02
        yield ev({**tok("w ", i + 1), "error": ["", {}, False][i % 3]})
    yield DONE


@scenario
def message_chunks() -> Pieces:  # base_resp style: error in 200 JSON
    yield b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
    yield json.dumps({"error": {"message": "quota exceeded"}}).encode()


# --- ends
def ten() -> Pieces:
    for i in range(10):
        yield 0.02
        yield ev(tok("w ", i + 1))


@scenario
def no_done() -> Pieces:
    yield SSE
    yield from ten()
    yield ev(tok("", 10, **{"finish_reason": "stop"}))


@scenario
def done_no_blank() -> Pieces:
    yield SSE
    yield from ten()
    yield b"data: [DONE]\n"


@scenario
def done_no_newline() -> Pieces:
    yield SSE
    yield from ten()
    yield b"data: [DONE]"


@scenario
def done_trailing_space() -> Pieces:
    yield SSE
    yield from ten()
    yield b"data: [DONE] \n\n"


@scenario
def done_then_open() -> Pieces:  # [DONE] comes, the connection stays open
    yield CHUNKED
    for p in ten():
        yield b"%x\r\n%b\r\n" % (len(p), p) if isinstance(p, bytes) else p
    yield b"%x\r\n%b\r\n" % (len(DONE), DONE)
    yield 30.0
    yield b"0\r\n\r\n"


@scenario
def done_then_reset() -> Pieces:  # [DONE] comes, then RST instead of the last chunk
    yield CHUNKED
    for p in ten():
        yield b"%x\r\n%b\r\n" % (len(p), p) if isinstance(p, bytes) else p
    yield b"%x\r\n%b\r\n" % (len(DONE), DONE)
    yield 0.3
    yield "RST"


@scenario
def done_then_cut() -> Pieces:  # [DONE] comes, then FIN without the last chunk
    yield CHUNKED
    for p in ten():
        yield b"%x\r\n%b\r\n" % (len(p), p) if isinstance(p, bytes) else p
    yield b"%x\r\n%b\r\n" % (len(DONE), DONE)


@scenario
def usage_after_done() -> Pieces:
    yield SSE
    for _ in range(10):
        yield 0.02
        yield ev(tok("w "))
    yield DONE
    yield ev(usage(10))


# --- framing
@scenario
def crlf() -> Pieces:
    yield SSE
    for i in range(10):
        yield 0.02
        yield ev(tok("w ", i + 1), b"\r\n\r\n")
    yield b"data: [DONE]\r\n\r\n"


@scenario
def no_space() -> Pieces:
    yield SSE
    for i in range(10):
        yield 0.02
        yield b"data:" + json.dumps(tok("w ", i + 1)).encode() + b"\n\n"
    yield b"data:[DONE]\n\n"


@scenario
def comments() -> Pieces:
    yield SSE
    yield b": ping\n\n"
    for i in range(10):
        yield 0.02
        yield b": keep-alive\n\n" + ev(tok("w ", i + 1))
    yield DONE


@scenario
def empty_data() -> Pieces:
    yield SSE
    yield b"data:\n\n"
    for i in range(10):
        yield 0.02
        yield b"data: \n\n" + ev(tok("w ", i + 1))
    yield DONE


@scenario
def split_utf8() -> Pieces:  # a character cut between two packets
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
def half_char_text() -> Pieces:  # half an emoji per event
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
def http10() -> Pieces:
    yield b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    yield from ten()
    yield DONE


@scenario
def single_newline() -> Pieces:  # one newline between events, never a blank line
    yield SSE
    for i in range(10):
        yield 0.02
        yield ev(tok("w ", i + 1), b"\n")
    yield DONE


@scenario
def octet() -> Pieces:
    yield SSE.replace(b"text/event-stream", b"application/octet-stream")
    yield from ten()
    yield DONE


@scenario
def octet_stream_json() -> Pieces:
    yield SSE.replace(b"text/event-stream", b"application/json")
    yield from ten()
    yield DONE


# --- status
@scenario
def s201() -> Pieces:
    yield SSE.replace(b"200 OK", b"201 Created")
    yield from ten()
    yield DONE


@scenario
def s429() -> Pieces:
    yield b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"
    yield b'{"error":{"message":"slow down x"}}'


@scenario
def s307() -> Pieces:
    where = b"http://127.0.0.1/other/v1/completions/"
    yield b"HTTP/1.1 307 Temporary Redirect\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n" % where


@scenario
def s500_empty() -> Pieces:
    yield b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"


@scenario
def early_answer() -> Pieces:  # answers before the request has come whole
    yield from good()


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


def _talk(peer: socket.socket) -> None:
    path, body, length = begun(peer)
    name = path.split("/")[1].split("?")[0]
    while name != "early_answer" and len(body) < length:
        body += some(peer)
    if path.endswith("/models"):
        reply(peer, MODELS.get(name, b'{"object":"list","data":[{"id":"m"}]}'))
    elif path.endswith("/tokenize"):
        reply(peer, TOKENIZE.get(name))
    elif scenario := S.get(ALIAS.get(name, name)):
        play(peer, scenario())
    else:
        reply(peer, None)


def start() -> SocketServer:
    return SocketServer(_talk)
