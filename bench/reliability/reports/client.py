"""Lines A1 to A5 and A11: streams of odd servers, sent by `gatescope bench` one request at a time.
What a scenario sends is in `fake_server.py`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bench.reliability.reports import fake_server
from bench.reliability.reports.case import Case, gatescope, wrong

URL = ""  # set while `server` runs
SLACK = 0.6  # of a time: the machine may be busy


@contextlib.contextmanager
def server() -> Iterator[None]:
    """The server of all scenarios, on a free port."""
    global URL
    running = fake_server.start()
    URL = running.url
    try:
        yield
    finally:
        running.stop()


def _bench(place: Path, scenario: str, *, chat: bool) -> list[object]:
    row = {"id": "1", "text": "a prompt of a few words", "category": "x"}
    (place / "001.jsonl").write_text(json.dumps(row) + "\n")
    flags = ["--chat"] if chat else []
    return ["bench", "001.jsonl", "--base-url", f"{URL}/{scenario}", "--json", *flags]


def good(
    scenario: str,
    tokens: int | None,
    place: Path,
    *,
    ttft_ms: float | None = None,
    tpot_ms: float | None = None,
    one_piece: bool = False,
    source: str = "",
    chat: bool = False,
) -> str:
    """An answer of `tokens` tokens (None: uncounted), counted by `source`, with about these
    times."""
    answer = gatescope(place, *_bench(place, scenario, chat=chat), "--model", "m")
    found = answer.data or {}
    facts = {
        "exit code 0": answer.code == 0,
        "completed": found.get("completed") == 1,
        f"{tokens} tokens": tokens is None or found.get("output_lens") == [tokens],
        "ends at once": (found.get("duration") or 99) < 10,
    }
    for key, expected in (("mean_ttft_ms", ttft_ms), ("mean_tpot_ms", tpot_ms)):
        if expected is not None:
            value = found.get(key) or 0.0
            facts[f"{key} {expected:g}"] = abs(value - expected) <= SLACK * expected
    if source:
        facts[f"counted by {source}"] = found.get("output_tokens_from") == {source: 1}
    if one_piece:
        facts["no TPOT"] = "mean_tpot_ms" in found and found["mean_tpot_ms"] is None
    return wrong(facts, answer)


def failed(scenario: str, words: str, place: Path) -> str:
    """A failed request, with the server's words in the table and in the result."""
    answer = gatescope(place, *_bench(place, scenario, chat=False), "--model", "m")
    found = answer.data or {}
    facts = {
        "exit code 1": answer.code == 1,
        "failed": found.get("completed") == 0,
        f"{words!r} in its error": words in "".join(found.get("errors", [])),
        f"{words!r} on stderr": words in answer.err,
    }
    return wrong(facts, answer)


def refused(scenario: str, words: str, place: Path) -> str:
    """A server without a usable model: a sentence, before anything is sent."""
    answer = gatescope(place, *_bench(place, scenario, chat=False))
    one_line = len(answer.err.strip().splitlines()) == 1
    facts = {
        "exit code 2": answer.code == 2,
        "one line": one_line,
        words: words in answer.err,
    }
    return wrong(facts, answer)


STREAMS = [
    ("A1", "good", partial(good, "good", 10, tpot_ms=20)),
    ("A1", "hidden_tail", partial(good, "hidden_tail", 50, tpot_ms=20)),
    ("A1", "hidden_head", partial(good, "hidden_head", 20, ttft_ms=50, tpot_ms=50)),
    ("A1", "all_hidden", partial(good, "all_hidden", 10, ttft_ms=20, tpot_ms=20)),
    ("A1", "tool_calls", partial(good, "text_then_tool_calls", 20, tpot_ms=20, chat=True)),
    ("A1", "role_first", partial(good, "role_first", 10, ttft_ms=300, chat=True)),
    ("A1", "reasoning", partial(good, "reasoning_content", 10, tpot_ms=20, chat=True)),
    ("A1", "reasoning_details", partial(good, "reasoning_details", 10, tpot_ms=20, chat=True)),
    ("A1", "one_seen_of_20", partial(good, "one_seen_of_20", 20, one_piece=True)),
    ("A1", "half_char_text", partial(good, "half_char_text", 20)),
    ("A3", "one_event_50", partial(good, "one_event_50", 50, one_piece=True)),
    ("A3", "buffered", partial(good, "buffered", 50, one_piece=True)),
    *(
        ("A2", name, partial(failed, name, words))
        for name, words in (
            ("err_object_flat", "engine died"),
            ("err_object_flat_first", "prompt too long"),
            ("err_field", "context size exceeded"),
            ("err_field_first", "context size exceeded"),
            ("err_event", "worker lost"),
            ("err_object", "engine died"),
            ("finish_abort", "abort"),
            ("message_chunks", "quota exceeded"),
        )
    ),
    ("A2", "error_null", partial(good, "error_null", 10)),
    ("A2", "error_empty", partial(good, "error_empty", 10)),
    *(
        ("A4", name, partial(good, name, 10))
        for name in (
            *("choices_null", "data_null", "float_usage", "choice_null_inside", "usage_only"),
            *("no_done", "done_no_blank", "done_no_newline", "done_trailing_space"),
            *("done_then_open", "done_then_reset", "done_then_cut", "crlf", "no_space"),
            *("comments", "empty_data", "split_utf8", "http10"),
            "early_answer",
        )
    ),
    ("A4", "delta_null", partial(good, "delta_null", 10, chat=True)),
    ("A4", "usage_after_done", partial(good, "usage_after_done", None)),
    ("A4", "single_newline", partial(failed, "single_newline", "not the expected JSON")),
    ("A4", "octet", partial(failed, "octet", "application/octet-stream is not an event stream")),
    ("A4", "octet_stream_json", partial(failed, "octet_stream_json", "application/json")),
    ("A5", "short_stop", partial(good, "short_stop", 5)),
    ("A5", "no_usage", partial(good, "no_usage", None)),
    ("A5", "tok_two", partial(good, "tok_two", 10, source="tokenizer")),
    ("A5", "tok_empty", partial(good, "tok_empty", 10, source="events")),
    ("A5", "tok_content", partial(good, "tok_content", None)),
    ("A5", "no_usage_multi", partial(good, "no_usage_multi", None)),
    ("A11", "s429", partial(failed, "s429", "slow down x")),
    ("A11", "s307", partial(failed, "s307", "/other/v1/completions/")),
    ("A11", "s500_empty", partial(failed, "s500_empty", "HTTP 502")),
    ("A11", "s201", partial(failed, "s201", "HTTP 201")),
    *(("A11", name, partial(refused, name, "model")) for name in ("models_empty", "models_array")),
    ("A11", "models_null", partial(refused, "models_null", "model")),
]
CASES = [Case(line, name, seen) for line, name, seen in STREAMS]
