"""`gatescope bench` against servers whose answers have odd tokens, errors, pieces, shapes and ends.

Events are 20 ms apart; what a machine adds to a sleep is in both TTFT and E2E.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.scripted import (
    CHUNKED,
    CLOSED,
    DONE,
    RESET,
    Piece,
    Script,
    Scripted,
    chunks,
    event,
    token,
    usage,
)

from core import cli

GAP_S = 0.02
TOTAL = {"prompt_tokens": 3, "completion_tokens": 10}
STOP = {"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]}


def paced(*events: bytes, end: bytes = DONE, head: bytes = CLOSED) -> Script:
    def play() -> Iterator[Piece]:
        yield head
        for each in events:
            yield GAP_S
            yield each
        yield end

    return play


def counted(seen: range | tuple[int, ...], n: int, **more: Any) -> Script:
    """`n` tokens, of which those in `seen` have text."""
    return paced(*(token("w " if i in seen else "", i + 1) for i in range(n)), **more)


def chat(n: int, text: int, hidden: dict[str, Any]) -> Script:
    def of(i: int) -> bytes:
        delta = {"content": "w "} if i < text else hidden
        count = {"prompt_tokens": 3, "completion_tokens": i + 1}
        return event({"choices": [{"index": 0, "delta": delta}], "usage": count})

    return paced(*(of(i) for i in range(n)))


TEN = tuple(token("w ", i + 1) for i in range(10))
PLAIN = tuple(token("w ") for _ in range(10))
EMPTY: list[Any] = ["", {}, False, None, *[0] * 6]
WITH_EMPTY_ERRORS = [
    event({**json.loads(each[6:]), "error": odd}) for each, odd in zip(TEN, EMPTY, strict=True)
]
TOOL = {"tool_calls": [{"index": 0, "function": {"arguments": "a"}}]}


def chunked(*end: Piece) -> Script:
    """Ten tokens, and an end that is not that of the body."""
    return lambda: [CHUNKED, *chunks(*(p for each in TEN for p in (GAP_S, each)), *end)]


# name → script, tokens, tokens with text
GOOD: dict[str, tuple[Script, int, int]] = {
    "all-seen": (counted(range(10), 10), 10, 10),
    "hidden-tail": (counted(range(4), 20), 20, 4),
    "hidden-head": (counted(range(10, 20), 20), 20, 10),
    "all-hidden": (counted((), 10), 10, 0),
    "tool-calls": (chat(10, 2, TOOL), 10, 2),
    "refusal": (chat(10, 2, {"refusal": "no "}), 10, 2),
    "hidden-reasoning": (chat(10, 2, {"content": ""}), 10, 2),
    "choices-null": (paced(*PLAIN, event({"choices": None, "usage": TOTAL})), 10, 10),
    "choice-null": (paced(*PLAIN, event({"choices": [None], "usage": TOTAL})), 10, 10),
    "data-null": (paced(*(event(b"null") + each for each in TEN)), 10, 10),
    "usage-float": (paced(*PLAIN, usage(10.0)), 10, 10),
    "content-parts": (chat(10, 0, {"content": [{"type": "text", "text": "w "}]}), 10, 10),
    "error-empty": (paced(*WITH_EMPTY_ERRORS), 10, 10),
    "no-done": (paced(*TEN, event(STOP), end=b""), 10, 10),
    "done-blank": (paced(*TEN, end=b"data: [DONE] \n\n"), 10, 10),
    "done-newline": (paced(*TEN, end=b"data: [DONE]\n"), 10, 10),
    "done-bare": (paced(*TEN, end=b"data: [DONE]"), 10, 10),
    "usage-after-done": (paced(*PLAIN, DONE + usage(10)), 10, 10),
    "done-cut": (chunked(DONE), 10, 10),
    "done-reset": (chunked(DONE, 0.1, RESET), 10, 10),
    "finish-usage-reset": (chunked(token("", 10, "stop"), 0.1, RESET), 10, 10),
    "done-open": (chunked(DONE, 20.0), 10, 10),
    "finish-usage-open": (chunked(event(STOP), usage(10), 20.0), 10, 10),
}

# name → what the server says, the error
BAD = {
    "error-object": (
        event({"error": {"message": "engine died", "code": 500}}),
        "server error: engine died (500)",
    ),
    "error-flat": (
        event({"object": "error", "message": "engine died", "code": 500}),
        "server error: engine died (500)",
    ),
    "error-field": (
        b'error: {"code": 400, "message": "context size exceeded"}\n\n',
        "server error: context size exceeded (400)",
    ),
    "error-event": (
        b'event: error\ndata: {"message": "worker lost"}\n\n',
        "server error: worker lost",
    ),
    "error-comment": (b"event: error\n: worker lost\n\n", "server error: worker lost"),
    "error-code": (
        event({"text": "network error", "error_code": 50001}),
        "server error: network error (50001)",
    ),
    "base-resp": (
        event({"base_resp": {"status_code": 1008, "status_msg": "no balance"}}),
        "server error: no balance (1008)",
    ),
    "abort": (token("", 3, "abort"), "server error: finish_reason abort"),
}


def buffered() -> Iterator[Piece]:
    yield from (CLOSED, 0.1, b"".join(TEN) + DONE)


def bursts() -> Iterator[Piece]:
    yield CLOSED
    for _ in range(3):
        yield 0.3
        yield token("w ") * 3
    yield DONE


OTHER: dict[str, Script] = {
    "one-event": lambda: [CLOSED, 0.1, token("w " * 50, 50) + DONE],
    "buffered": buffered,
    "bursts": bursts,
    "one-seen": lambda: [CLOSED, 0.02, token("w w w "), 0.2, usage(20), DONE],
    "no-usage": paced(*PLAIN),
    "tokenized": paced(*PLAIN),
    "not-tokenized": paced(*PLAIN),
    "cut": lambda: [CHUNKED, *chunks(*TEN)],
    "finish-cut": lambda: [CHUNKED, *chunks(*TEN[:-1], event(STOP))],
}
TOKENIZE = {
    "tokenized": b'{"tokens": [1, 2, 3, 4, 5, 6, 7, 8, 9]}',
    "not-tokenized": b'{"tokens": []}',
}


@pytest.fixture(scope="module")
def server() -> Iterator[Scripted]:
    scripts = {name: script for name, (script, _, _) in GOOD.items()} | OTHER
    for name, (said, _) in BAD.items():
        scripts[name] = paced(*TEN[:3], said)
        scripts[f"{name}-first"] = paced(said)
    running = Scripted(scripts, TOKENIZE)
    yield running
    running.stop()


Ran = tuple[int, dict[str, Any], str]


@pytest.fixture
def bench(server: Scripted, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command; its exit code, its result, and what it says."""

    def run(name: str, *flags: str, requests: int = 1) -> Ran:
        data = tmp_path / "001.jsonl"
        data.write_text("".join(f'{{"id": "{i}", "text": "go"}}\n' for i in range(requests)))
        where = ["--base-url", f"{server.url}/{name}", "--model", "m"]
        code = cli.main(["bench", str(data), *where, "--json", *flags])
        out, err = capsys.readouterr()
        return code, json.loads(out), err

    return run


@pytest.mark.parametrize("name", GOOD)
def test_a_token_is_what_the_server_counts(name: str, bench: Any) -> None:
    """Every gap is measured, whatever has text and however the answer ends."""
    _, n, visible = GOOD[name]
    code, result, _ = bench(name)
    assert (code, result["errors"]) == (0, [""])
    assert (result["output_lens"], result["visible_tokens"]) == ([n], [visible])
    assert (len(result["itls"][0]), result["shared_events"]) == (n - 1, 0)
    after_first = result["mean_e2e_ms"] - result["mean_ttft_ms"]
    assert result["mean_tpot_ms"] == pytest.approx(after_first / (n - 1))
    assert result["mean_tpot_ms"] >= 20
    assert 20 <= result["mean_ttft_ms"] < after_first
    assert result["duration"] < 2  # not the 20 s for which a connection stays open
    assert result["output_throughput"] == pytest.approx(n / result["duration"])


@pytest.mark.parametrize("when", ["", "-first"])
@pytest.mark.parametrize("name", BAD)
def test_an_error_in_a_stream_reaches_the_table_in_the_server_s_words(
    name: str, when: str, bench: Any
) -> None:
    _, error = BAD[name]
    code, result, said = bench(name + when)
    assert (code, result["completed"], result["errors"]) == (1, 0, [error])
    assert f"  1 × {error}\n" in said


@pytest.mark.parametrize("name", ["one-event", "buffered"])
def test_an_answer_in_one_piece_has_no_tpot_and_meets_no_limit_of_it(name: str, bench: Any) -> None:
    code, result, said = bench(name, "--slo", "tpot_ms=1000")
    assert (code, result["mean_tpot_ms"], result["mean_itl_ms"], result["itls"]) == (
        0,
        None,
        None,
        [[]],
    )
    assert result["tpot_ms_reason"] == "1 of 1 answers came in one piece"
    assert result["request_goodput"] == 0
    about = [w for w in result["client"]["warnings"] if "something between" in w]
    assert about == [w for w in result["client"]["warnings"] if "limited by" not in w]
    assert len(about) == 1
    assert about[0] in said
    assert f"{'TPOT':<16}{'–':>10}" in said


def test_bursts_are_said(bench: Any) -> None:
    _, result, said = bench("bursts")
    assert result["shared_reads_share"] == 1.0
    assert "100.0% of reads held several events of a stream" in said
    assert said.count("something between the server and the client buffers the stream") == 1


def test_times_of_unseen_tokens_are_null(bench: Any) -> None:
    code, result, said = bench("one-seen")
    assert (code, result["output_lens"], result["visible_tokens"]) == (0, [20], [None])
    nulls = (
        "mean_tpot_ms",
        "mean_itl_ms",
        "mean_e2e_ms",
        "output_throughput",
        "request_throughput",
    )
    assert [result[name] for name in nulls] == [None] * 5
    assert result["mean_ttft_ms"] >= 20
    assert "TPOT, ITL: of 1 answers, 1 has more tokens than events showed" in said
    assert "– tokens/s" in said


@pytest.mark.parametrize(
    ("name", "n", "source", "words"),
    [
        ("no-usage", 10, "events", "counted as one an event, for want of usage and a tokenizer"),
        ("not-tokenized", 10, "events", "counted as one an event"),
        ("tokenized", 9, "tokenizer", "counted by the server's tokenizer, for want of usage"),
        ("all-seen", 10, "usage", "counted by the server's usage"),
    ],
)
def test_what_tokens_were_counted_from_is_said(
    name: str, n: int, source: str, words: str, bench: Any
) -> None:
    _, result, said = bench(name)
    assert (result["output_lens"], result["output_tokens_from"]) == ([n], {source: 1})
    assert f"tokens: {n} output tokens, {words}" in said


def test_without_usage_the_prompt_s_tokens_are_unknown(bench: Any, server: Scripted) -> None:
    server.asked.clear()
    _, result, said = bench("no-usage")
    assert (result["input_lens"], result["total_input_tokens"], result["input_throughput"]) == (
        [None],
        None,
        None,
    )
    reason = "1 of 1 answers have no usage that counts the prompt's tokens"
    assert result["input_throughput_reason"] == reason
    assert f"prompt tokens unknown: {reason}" in said
    asked = server.asked[0]
    assert asked["prompt"] == asked["content"] == "w " * 10  # llama.cpp wants `content`


def test_fewer_tokens_than_asked_for_are_said_and_the_asked_length_is_kept(bench: Any) -> None:
    _, result, said = bench("all-seen", "--output-len", "50")
    assert result["asked_output_len"] == 50
    assert "1 of 1 answers has fewer than the 50 tokens asked for, the shortest 10" in said
    _, result, said = bench("all-seen", "--output-len", "10")
    assert (result["asked_output_len"], "fewer than" in said) == (10, False)
    _, result, said = bench("all-seen", "--extra-body", '{"max_tokens": null}')
    assert (result["asked_output_len"], "fewer than" in said) == (None, False)


def test_a_slot_is_free_when_the_answer_is_done_though_its_connection_stays_open(
    bench: Any,
) -> None:
    began = time.monotonic()
    code, result, _ = bench("done-open", "--max-concurrency", "1", requests=3)
    assert (code, result["completed"]) == (0, 3)
    assert result["duration"] < 2
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("name", ["cut", "finish-cut"])
def test_a_cut_before_the_end_is_an_error(name: str, bench: Any) -> None:
    code, result, said = bench(name)
    assert (code, result["errors_by_kind"]) == (1, {"stream cut": 1})
    assert "1 × stream cut: the server closed the connection before the answer's end" in said
