from __future__ import annotations

import json
from itertools import accumulate, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.load.stream import TokenStream


def sse(*payloads: Any) -> bytes:
    return b"".join(
        b"data: " + (p.encode() if isinstance(p, str) else json.dumps(p).encode()) + b"\n\n"
        for p in payloads
    )


def token(text: str, used: int | None = None) -> dict[str, Any]:
    event: dict[str, Any] = {"choices": [{"index": 0, "text": text}]}
    if used is not None:
        event["usage"] = {"prompt_tokens": 3, "completion_tokens": used}
    return event


def chat(**delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta}]}


def usage(tokens: int) -> dict[str, Any]:
    return {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": tokens}}


def read(*feeds: tuple[int, bytes]) -> TokenStream:
    stream = TokenStream(50)
    for at, chunk in feeds:
        stream.feed(chunk, at)
    return stream


def test_each_event_has_the_time_of_the_read_that_completed_it() -> None:
    one, two = sse(token("a")), sse(token("b"))
    stream = read((10, one[:20]), (20, one[20:] + two), (30, sse(usage(2), "[DONE]")))
    assert list(stream.stamps) == [20, 20]
    assert "".join(stream.texts) == "ab"
    assert (stream.prompt_tokens, stream.completion_tokens) == (3, 2)
    assert stream.closing_error() == ""


def test_empty_events_and_the_role_are_no_tokens() -> None:
    stream = read(
        (1, sse(chat(role="assistant", content=""))),
        (2, sse(chat(content="hi"))),
        (3, sse(chat(content=None))),
    )
    assert list(stream.stamps) == [2]


def test_an_event_whose_count_rises_is_a_token_though_it_has_no_text() -> None:
    stream = read(
        (1, sse(token("a", 1))), (2, sse(token("", 3))), (3, sse(token("bc", 4), token("d", 4)))
    )
    assert list(stream.stamps) == [1, 2, 3]
    assert tuple(stream.event_tokens()) == (1, 2, 1)
    assert (stream.output_tokens, stream.visible_tokens) == (4, 2)
    assert "".join(stream.texts) == "abcd"  # kept, though the last event has no token of its own


@pytest.mark.parametrize(
    "delta",
    [
        {"tool_calls": [{"index": 0, "function": {"arguments": "a"}}]},
        {"function_call": {"arguments": "a"}},
        {"refusal": "I cannot"},
        {"reasoning_details": [{"type": "reasoning.text", "text": "w"}]},
    ],
)
def test_without_counts_content_that_is_no_text_is_a_token(delta: dict[str, Any]) -> None:
    stream = read((1, sse(chat(content="a"))), (2, sse(chat(**delta), "[DONE]")))
    assert (list(stream.stamps), stream.texts, stream.visible_tokens) == ([1, 2], ["a"], 1)


def test_a_count_that_stays_0_is_none() -> None:
    stream = read((1, sse(token("a", 0))), (2, sse(token("b", 0))), (3, sse(usage(2), "[DONE]")))
    assert (list(stream.stamps), stream.output_tokens) == ([1, 2], 2)


def test_once_content_comes_without_a_count_counts_are_totals() -> None:
    stop = {"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]}
    end = {**stop, "usage": {"prompt_tokens": 3, "completion_tokens": 9}}
    stream = read((1, sse(token("a", 1))), (2, sse(token("b"))), (3, sse(end, "[DONE]")))
    assert (list(stream.stamps), tuple(stream.event_tokens())) == ([1, 2], (1, 1))
    assert (stream.output_tokens, stream.visible_tokens) == (9, None)


def test_of_two_choices_one_s_count_and_end_are_not_the_answer_s() -> None:
    def of(index: int, used: int, reason: str | None = None) -> dict[str, Any]:
        choice = {"index": index, "text": "a", "finish_reason": reason}
        return {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": used}}

    stream = read((1, sse(of(0, 1), of(1, 1))), (2, sse(of(0, 2, "length"))))
    assert (list(stream.stamps), stream.finished) == ([1, 1, 2], False)
    assert stream.closing_error("stream cut: x") == "stream cut: x"


def test_reasoning_is_output() -> None:
    stream = read(
        (1, sse(chat(reasoning_content="hm"))),
        (2, sse(chat(reasoning="so"))),
        (3, sse(chat(content="42"))),
    )
    assert list(stream.stamps) == [1, 2, 3]


def test_continuous_usage_counts_the_tokens_of_each_event() -> None:
    stream = read(
        (1, sse(token("ab", 2), token("cdef", 6))), (2, sse(token("g", 7), usage(7), "[DONE]"))
    )
    assert tuple(stream.event_tokens()) == (2, 4, 1)
    assert stream.received == 7


def test_a_final_usage_alone_does_not_say_which_event_carried_the_tokens() -> None:
    stream = read((1, sse(token("aaaa"), token("bbbb"), token("cc"), usage(10), "[DONE]")))
    assert tuple(stream.event_tokens()) == (1, 1, 1)
    assert (stream.output_tokens, stream.visible_tokens) == (10, None)


def test_a_final_usage_just_above_the_events_is_not_spread() -> None:
    stream = read((1, sse(token("a"), token("b"), usage(3), "[DONE]")))
    assert tuple(stream.event_tokens()) == (1, 1)


def test_an_error_event_is_the_answer_s_error() -> None:
    stream = read((1, sse(token("a"), {"error": {"message": "out of memory"}})))
    assert stream.closing_error() == "server error: out of memory"


@pytest.mark.parametrize("before", [b"", sse(token("a", 1)), b": ping\n\n"])
@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b'data: {"error": "engine died"}\n\n', "engine died"),
        (b'data: {"error": {"message": "no", "type": "Bad", "code": 400}}\n\n', "no (Bad, 400)"),
        (b'data: {"error": {"why": [1]}}\n\n', '{"why": [1]}'),
        (b'data: {"object": "error", "message": "engine died"}\n\n', "engine died"),
        (b'data: {"code": 503, "message": "busy"}\n\n', "busy (503)"),
        (b'data: {"code": "Throttling", "message": "busy"}\n\n', "busy (Throttling)"),
        (
            b'data: {"choices": null, "base_resp": {"status_code": 1008, "status_msg": "no"}}\n\n',
            "no (1008)",
        ),
        (b'data: {"text": "network error", "error_code": 50001}\n\n', "network error (50001)"),
        (b'data: {"detail": "Not authenticated"}\n\n', "Not authenticated"),
        (b'error: {"code": 400, "message": "context size"}\n\n', "context size (400)"),
        (b"error: out of memory\n", "out of memory"),
        (b'event: error\ndata: {"message": "worker lost", "code": 503}\n\n', "worker lost (503)"),
        (b'event: error\ndata: {"error": {"message": "lost"}}\n\n', "lost"),
        (b"event: error\ndata: lost\n\n", "lost"),
        (b"event: error\n: worker lost\n\n", "worker lost"),
        (b"event: error\n\n", "an event called error, without a word"),
        (
            b'data: {"choices": [{"text": "", "finish_reason": "abort"}]}\n\n',
            "finish_reason abort",
        ),
        (
            b'data: {"choices": [{"delta": {}, "finish_reason": "error"}]}\n\n',
            "finish_reason error",
        ),
    ],
)
def test_an_error_in_the_stream_fails_it_in_the_server_s_words(
    before: bytes, said: bytes, words: str
) -> None:
    whole = read((1, before), (2, said + sse("[DONE]")))
    by_byte = read(*((1, bytes([byte])) for byte in before + said + sse("[DONE]")))
    assert whole.closing_error() == by_byte.closing_error() == f"server error: {words}"
    cut = read((1, before), (2, said))
    assert cut.closing_error("ReadError: reset") == f"server error: {words}"


@pytest.mark.parametrize("empty", ["", {}, False, None, 0, [], {"message": None}])
def test_an_empty_error_is_none(empty: Any) -> None:
    stream = read((1, sse({**token("a", 1), "error": empty})), (2, b"error: \n\n" + sse("[DONE]")))
    assert (stream.closing_error(), list(stream.stamps)) == ("", [1])


@pytest.mark.parametrize(
    "fine", [{"code": 200, "message": "ok"}, {"base_resp": {"status_code": 0, "status_msg": ""}}]
)
def test_a_code_of_success_is_no_error(fine: dict[str, Any]) -> None:
    assert read((1, sse(token("a", 1), fine, "[DONE]"))).closing_error() == ""


@pytest.mark.parametrize(
    "odd",
    [
        {"choices": None, "usage": {"prompt_tokens": 3, "completion_tokens": 2}},
        {"choices": [None], "usage": {"prompt_tokens": 3, "completion_tokens": 2}},
        {"choices": [], "usage": {"prompt_tokens": 3.0, "completion_tokens": 2.0}},
        {"choices": [], "usage": "none", "system_fingerprint": 7},
        None,
    ],
)
def test_odd_shapes_that_say_enough_are_good(odd: Any) -> None:
    stream = read((1, sse(token("a"))), (2, sse(token("b"))), (3, sse(odd, "[DONE]")))
    assert (stream.closing_error(), list(stream.stamps), stream.output_tokens) == ("", [1, 2], 2)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab"),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}], "hm"),
        (["a", "b"], "ab"),
    ],
)
def test_content_may_be_a_list_of_parts(content: Any, text: str) -> None:
    stream = read((1, sse(chat(content=content), "[DONE]")))
    assert (stream.closing_error(), stream.texts) == ("", [text])


@pytest.mark.parametrize("count", [-1, 1.5, None, "3", True])
def test_a_count_that_cannot_be_one_is_unknown(count: Any) -> None:
    event = {**token("a"), "usage": {"prompt_tokens": count, "completion_tokens": count}}
    stream = read((1, sse(event, "[DONE]")))
    assert (stream.closing_error(), stream.prompt_tokens, stream.completion_tokens) == ("", None, 0)


def test_half_a_character_is_kept_as_a_replacement() -> None:
    half = b'data: {"choices": [{"text": "a\\ud83d"}]}\n\n'
    assert read((1, half + sse("[DONE]"))).texts == ["a\ufffd"]


END = {"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]}


@pytest.mark.parametrize(
    ("end", "is_done"),
    [
        (b"data: [DONE]\n\n", True),
        (b"data: [DONE] \n\n", True),
        (b"data: [DONE]\n", True),
        (b"data: [DONE]", True),
        (b"data:[DONE]\r\n\r\n", True),
        (sse({**END, "usage": {"prompt_tokens": 3, "completion_tokens": 1}}), True),
        (sse(END, usage(1)), True),
        (sse(END), False),
        (sse(END)[:-1], False),
    ],
)
def test_how_an_answer_may_end(end: bytes, is_done: bool) -> None:
    """`is_done`: the answer ends there, whatever becomes of the connection."""
    ends = []
    stream = TokenStream(50)
    stream.on_end = lambda: ends.append(1)
    stream.feed(sse(token("a", 1)), 1)
    assert stream.closing_error("reset") == "reset"
    stream.feed(end, 2)
    assert len(ends) == is_done
    assert stream.closing_error("reset") == ("" if is_done else "reset")
    assert stream.closing_error() == ""


def test_a_cut_in_an_event_is_a_cut() -> None:
    stream = read((1, sse(token("a", 1))), (2, sse(token("b", 2))[:30]))
    assert stream.closing_error() == "stream cut: the server closed it before [DONE]"


def test_what_is_no_json_is_named() -> None:
    assert read((1, b"data: {oops\n\n")).closing_error().startswith("not the expected JSON: ")
    assert read((1, sse({"choices": 5}))).closing_error().startswith("not the expected JSON: ")


def test_how_an_answer_ended_too_soon_is_told() -> None:
    assert (
        read((1, sse(token("a")))).closing_error()
        == "stream cut: the server closed it before [DONE]"
    )
    assert (
        read((1, sse("[DONE]"))).closing_error()
        == "empty stream: the server ended it without a token"
    )


def test_several_whole_events_of_one_read_are_each_counted_under_its_time() -> None:
    stream = read(
        (1, sse(token("a", 1), token("", 2), token("bc", 3), token("def", 6))),
        (2, sse(token("g", 7))),
    )
    assert list(stream.stamps) == [1, 1, 1, 1, 2]
    assert stream.texts == ["a", "bc", "def", "g"]
    assert tuple(stream.event_tokens()) == (1, 1, 1, 3, 1)
    assert (stream.received, stream.completion_tokens, stream.error) == (7, 7, "")


def test_a_read_that_begins_in_a_line_is_no_whole_event_though_it_looks_like_one() -> None:
    stream = read(
        (1, b": "),
        (2, sse(token("comment"))),
        (3, sse(token("a"))),
        (4, b"id: "),
        (5, sse(token("id"))),
    )
    assert (list(stream.stamps), stream.texts, stream.error) == ([3], ["a"], "")


PAYLOADS = [
    token("a", 1),
    token("", 2),
    token("Σ\n\ndata: {}", 5),
    chat(content="hi"),
    usage(9),
    "[DONE]",
]
WRONG = ["{oops}", {"choices": 5}, {"error": "no memory"}, {"object": "error", "message": "no"}]
FRAMES = [
    *["data: {}\n\n"] * 4,
    "data: {}\r\n\r\n",
    "data:{}\n\n",
    "data: {}\n\n: ping\n\n",
    ": ping\n\ndata: {}\n\n",
    "event: x\ndata: {}\n\n",
    ": note\nevent: x\ndata: {}\n\n",
    "data: {}\nid: 7\n\n",
    "data: {}\n\n\n\n",
]


EVENTS = st.tuples(st.sampled_from(PAYLOADS * 2 + WRONG), st.sampled_from(FRAMES))


@settings(max_examples=300)
@given(st.lists(EVENTS, max_size=8), st.data())
def test_where_reads_are_cut_changes_no_token(
    events: list[tuple[Any, str]], data: st.DataObject
) -> None:
    """Against a byte at a time, which says where each token ends: its time is that of the read that
    holds the place."""
    texts = [p if isinstance(p, str) else json.dumps(p, ensure_ascii=False) for p, _ in events]
    framed = [frame.format(text).encode() for text, (_, frame) in zip(texts, events, strict=True)]
    raw, ends = b"".join(framed), [*accumulate(map(len, framed))]
    cuts = [end for end in ends if data.draw(st.booleans())] + data.draw(
        st.lists(st.integers(0, len(raw)), max_size=3)
    )
    places = [0, *sorted(cuts), len(raw)]
    cut = read(*((end, raw[start:end]) for start, end in pairwise(places)))
    by_byte = read(*((place + 1, raw[place : place + 1]) for place in range(len(raw))))
    assert list(cut.stamps) == [
        next(place for place in places if place >= end) for end in by_byte.stamps
    ]
    assert cut.event_tokens() == by_byte.event_tokens()
    assert cut.closing_error() == by_byte.closing_error()
    for name in ("texts", "prompt_tokens", "completion_tokens", "error"):
        assert getattr(cut, name) == getattr(by_byte, name)
    is_wrong = any(payload in WRONG for payload, _ in events)
    assert (cut.error != "") == is_wrong
