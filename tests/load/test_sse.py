from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.load.sse import MAX_EVENT_BYTES, EventParser, EventTooLong, Failed


def events_of(*chunks: bytes) -> list[bytes | Failed]:
    parser = EventParser()
    return [event for chunk in chunks for event in parser.feed(chunk)]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: one\n\ndata: two\n\n", [b"one", b"two"]),
        (b"data: one\r\n\r\ndata: two\r\n\r\n", [b"one", b"two"]),
        (b"data: one\r\rdata: two\r\r", [b"one", b"two"]),
        (b"data:one\n\n", [b"one"]),
        (b"data:  one\n\n", [b" one"]),
        (b"data: first\ndata: second\n\n", [b"first\nsecond"]),
        (b": ping\n\ndata: one\n\n: ping\n\n", [b"one"]),
        (b"event: token\nid: 7\nretry: 10\ndata: one\n\n", [b"one"]),
        (b"data\n\n", [b""]),
        (b"\xef\xbb\xbfdata: one\n\n", [b"one"]),
        (b"data: one\n\n\n\ndata: two\n\n", [b"one", b"two"]),
        (b"data: not ended\n", []),
        (b"data: a: b\n\n", [b"a: b"]),
        ("data: Σ×–\n\n".encode(), ["Σ×–".encode()]),
        (b"event: error\ndata: no\n\ndata: one\n\n", [Failed(b"no", is_event=True), b"one"]),
        (b"data: no\nevent: error\n\n", [Failed(b"no", is_event=True)]),
        (b"event: error\n: worker lost\n\n", [Failed(b"worker lost", is_event=True)]),
        (b": ping\n\nevent: error\n\n", [Failed(b"", is_event=True)]),
        (b"error: no\n\ndata: one\n\n", [Failed(b"no", is_event=False), b"one"]),
    ],
)
def test_event_streams_are_cut_as_the_standard_says(
    stream: bytes, expected: list[bytes | Failed]
) -> None:
    assert events_of(stream) == expected


LINES = st.lists(
    st.sampled_from(
        [
            b"data: x",
            b"data:",
            b"data: {}",
            b"data: a\xce\xa3b",
            b": note",
            b"event: e",
            b"event: error",
            b"error: no",
            b"",
            b"",
            b"data",
            b"\xef\xbb\xbf",
        ]
    ),
    max_size=12,
)


@given(LINES, st.sampled_from([b"\n", b"\r\n", b"\r"]), st.data())
def test_where_the_bytes_are_cut_changes_nothing(
    lines: list[bytes], end: bytes, data: st.DataObject
) -> None:
    stream = b"".join(line + end for line in lines)
    whole = events_of(stream)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert events_of(*pieces) == whole
    assert events_of(*(bytes([byte]) for byte in stream)) == whole


def test_an_event_is_complete_at_its_blank_line_even_if_that_ends_in_a_bare_cr() -> None:
    parser = EventParser()
    assert parser.feed(b"data: one\r\r") == [b"one"]
    assert parser.feed(b"\ndata: two\r\n\r\n") == [b"two"]


def test_a_line_without_end_is_refused() -> None:
    with pytest.raises(EventTooLong, match="a line of over"):
        events_of(*[b"x" * 65536] * (MAX_EVENT_BYTES // 65536 + 2))


def test_an_event_without_end_is_refused() -> None:
    with pytest.raises(EventTooLong, match="an event of over"):
        events_of(*[b"data: " + b"x" * 65536 + b"\n"] * (MAX_EVENT_BYTES // 65536 + 2))
