from __future__ import annotations

import json
from itertools import accumulate, pairwise
from typing import Any

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


def test_what_an_empty_event_carried_goes_to_the_next_one_with_content() -> None:
    stream = read((1, sse(token("a", 1))), (2, sse(token("", 2))), (3, sse(token("bc", 3))))
    assert list(stream.stamps) == [1, 3]
    assert tuple(stream.event_tokens()) == (1, 2)


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


def test_a_final_usage_alone_is_spread_evenly_over_events_that_carried_several() -> None:
    stream = read((1, sse(token("aaaa"), token("bbbb"), token("cc"), usage(10), "[DONE]")))
    assert tuple(stream.event_tokens()) == (3, 3, 4)


def test_a_final_usage_just_above_the_events_is_not_spread() -> None:
    stream = read((1, sse(token("a"), token("b"), usage(3), "[DONE]")))
    assert tuple(stream.event_tokens()) == (1, 1)


def test_an_error_event_is_the_answer_s_error() -> None:
    stream = read((1, sse(token("a"), {"error": {"message": "out of memory"}})))
    assert stream.closing_error() == "server error: {'message': 'out of memory'}"


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
    assert list(stream.stamps) == [1, 1, 1, 2]
    assert stream.texts == ["a", "bc", "def", "g"]
    assert tuple(stream.event_tokens()) == (1, 2, 3, 1)
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
WRONG = ["{oops}", {"choices": 5}, {"error": "no memory"}]
FRAMES = [
    *["data: {}\n\n"] * 4,
    "data: {}\r\n\r\n",
    "data:{}\n\n",
    "data: {}\n\n: ping\n\n",
    ": ping\n\ndata: {}\n\n",
    "event: x\ndata: {}\n\n",
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
