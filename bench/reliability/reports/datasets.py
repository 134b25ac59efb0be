"""Lines A9 and A10: traces, and files of prompts in the layouts of other benchmarks."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from support.recording import Recording

from bench.reliability.reports.case import Case, gatescope, wrong

BOM = b"\xef\xbb\xbf"
NO_TEXT = 'expected an object with "text", "prompt", "messages" or "conversations"'


def lines(*rows: object) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def array(*rows: object, indent: int | None = None) -> bytes:
    return json.dumps(rows, indent=indent).encode()


def talk(*said: tuple[str, str | None], who: str = "from", what: str = "value") -> list[object]:
    return [{who: speaker, what: text} for speaker, text in said]


HI, YO = ("human", "hi there"), ("gpt", "yo")
CHAT = talk(HI, YO)
TURNS = talk(("user", "hi there"), ("assistant", "yo"), who="role", what="content")

# A file, and how many prompts it holds or how it is refused.
FILES: list[tuple[str, bytes, int | str]] = [
    ("array_of_prompts.json", array({"prompt": "a"}, {"prompt": "b"}), 2),
    ("array_of_strings.json", array("a", "b"), 2),
    ("array_of_text.json", array({"id": "1", "text": "a"}), 1),
    ("blank_first.jsonl", b"\n\n  \n" + lines({"prompt": "a"}), 1),
    ("bom_blank_first.jsonl", BOM + b"\n" + lines({"prompt": "hello"}), 1),
    ("bom_own.jsonl", BOM + lines({"id": "a", "text": "hello"}, {"id": "b", "text": "b"}), 2),
    ("bom_prompt.jsonl", BOM + lines({"prompt": "hello"}, {"prompt": "world"}), 2),
    ("bom_sharegpt.json", BOM + array({"id": "c1", "conversations": CHAT}), 1),
    ("bom_sharegpt_pretty.json", BOM + array({"id": "c1", "conversations": CHAT}, indent=1), 1),
    ("crlf_prompt.jsonl", b'{"prompt": "hello"}\r\n\r\n{"prompt": "world"}\r\n', 2),
    ("dup.jsonl", lines(*[{"id": "x", "prompt": "a"}] * 2), 2),
    ("forty.jsonl", lines(*({"prompt": f"p {n}"} for n in range(40))), 40),
    ("id0.jsonl", lines({"id": 0, "prompt": "a"}, {"id": 1, "prompt": "b"}), 2),
    ("messages.jsonl", lines({"messages": [{"role": "user", "content": "hi"}]}), 1),
    ("nul.jsonl", lines({"prompt": "a\0b"}), 1),
    ("prompt_messages.jsonl", lines({"prompt": [{"role": "user", "content": "hi"}]}), 1),
    ("prompt_nullid.jsonl", lines({"id": None, "prompt": "hello"}), 1),
    ("sharegpt.jsonl", lines(*[{"id": "c1", "conversations": CHAT}] * 2), 2),
    ("sharegpt_gptfirst.json", array({"conversations": talk(("gpt", "welcome"), HI, YO)}), 1),
    ("sharegpt_messages.json", array({"id": "c1", "messages": TURNS}), 1),
    (
        "sharegpt_mixed.json",
        array({"conversations": talk(("system", "s"), HI, YO)}, {"conversations": CHAT}),
        2,
    ),
    ("sharegpt_role.json", array({"id": "c1", "conversations": TURNS}), 1),
    ("sharegpt_system.json", array(*[{"conversations": talk(("system", "s"), HI, YO)}] * 2), 2),
    ("text_intid.jsonl", lines({"id": 1, "text": "hello"}), 1),
    ("text_only.jsonl", lines({"text": "hello"}, {"text": "world"}), 2),
    (
        "blank_prompt.jsonl",
        lines({"prompt": "ok"}, {"prompt": "  "}),
        ":2: prompt: expected a text",
    ),
    ("comma_jsonl.jsonl", b'{"prompt": "a"},\n{"prompt": "b"}\n', ":1: not JSON"),
    ("csv.csv", b"prompt,id\nhello,1\n", ":1: not JSON"),
    ("dict_data.json", b'{"data": [{"prompt": "a"}]}', ":1: " + NO_TEXT),
    ("empty.jsonl", b"", ": contains no prompts"),
    ("empty_array.json", b"[]", ": contains no prompts"),
    ("gz.jsonl", gzip.compress(lines({"prompt": "a"})), ": is compressed with gzip"),
    ("latin1.jsonl", '{"prompt": "café"}\n'.encode("latin-1"), ":1: not JSON: 'utf-8' codec"),
    (
        "mooncake.jsonl",
        lines({"timestamp": 0, "input_length": 10, "output_length": 5, "hash_ids": [1]}),
        ":1: " + NO_TEXT,
    ),
    ("plain.txt", b"hello there\nhow are you\n", ":1: not JSON"),
    ("pretty.json", b'{\n "prompt": "a"\n}', ":1: not JSON"),
    ("prompt_and_text.jsonl", lines({"prompt": "a", "text": "b"}), ":1: expected one text"),
    ("prompt_list.jsonl", lines({"prompt": ["a", "b"]}), ":1: prompt: expected a text, found a"),
    ("sharegpt_noconv.json", array({"id": "c1", "items": CHAT}), ": item 1: " + NO_TEXT),
    (
        "sharegpt_null.json",
        array({"conversations": CHAT}, {"conversations": talk(("human", None), YO)}),
        ": item 2: conversations[0].value: expected a text, found null",
    ),
    ("utf16.jsonl", '{"prompt": "hello"}\n'.encode("utf-16"), ": is text in UTF-16"),
]


def benched(name: str, data: bytes, expected: int | str, place: Path) -> str:
    """All prompts are sent, or the file is refused in a line before anything is."""
    (place / name).write_bytes(data)
    flags = ("--output-len", 3, "--num-prompts", 100, "--json")
    with Recording() as server:
        answer = gatescope(place, "bench", name, "--base-url", server.url, *flags)
        sent = len(server.posted())
    if isinstance(expected, int):
        facts = {"exit code 0": answer.code == 0, f"{expected} sent": sent == expected}
    else:
        facts = _refused(answer.err, name + expected) | {"none sent": sent == 0}
        facts["exit code 2"] = answer.code == 2
    return wrong(facts, answer)


def _refused(said: str, words: str) -> dict[str, bool]:
    return {f"{words!r} is said": words in said, "in one line": len(said.splitlines()) == 1}


def readable() -> Iterable[tuple[str, bytes, int]]:
    return ((name, data, n) for name, data, n in FILES if isinstance(n, int))


def predicted(place: Path) -> str:
    """`predict` reads what `bench` reads."""
    for name, data, _ in readable():
        (place / name).write_bytes(data)
    answer = gatescope(place, "predict", *(name for name, _, _ in readable()), "--json")
    facts = {"exit code 0": answer.code == 0}
    facts["all read"] = len(answer.data or ()) == len([*readable()])
    return wrong(facts, answer)


CONFIG = """[experiment]
engine = "builtin"
datasets = "dt/*"
num_prompts = 2
output_len = 3
warmup_requests = 0
{more}
[[backends]]
name = "baseline"
port = 0
tensor_parallel = 1
"""


def _batch(place: Path, more: str = "", *flags: object) -> tuple[int, str, int]:
    """Exit code, stderr, results."""
    (place / "experiments.toml").write_text(CONFIG.format(more=more))
    answer = gatescope(place, "--batch", "--out", "run", *flags)
    return answer.code, answer.err, len([*place.glob("run/*/results_json/*.json")])


def run_in_a_batch(place: Path) -> str:
    """`--batch` reads what `bench` reads."""
    (place / "dt").mkdir()
    for number, (name, data, _) in enumerate(readable(), 1):
        (place / "dt" / f"{number:03d}_{name}").write_bytes(data)
    code, said, results = _batch(place)
    return "" if (code, results) == (0, len([*readable()])) else f"{code}, {results}: {said[-300:]}"


def odd_trace_in_a_batch(place: Path) -> str:
    """A dataset that cannot be meant is named before anything starts; the other runs."""
    (place / "dt").mkdir()
    for name, last in (("001_x.jsonl", 1_700_000_000_000), ("002_x.jsonl", 0.1)):
        rows = [{"id": str(at), "text": "hello there", "timestamp": at} for at in (0, last)]
        (place / "dt" / name).write_bytes(lines(*rows))
    code, said, _ = _batch(place, 'arrival = "trace"')
    if code != 2 or "001_x.jsonl:2: timestamp: expected a time within 7 days" not in said:
        return f"exit {code}: {said[-300:]}"
    code, said, results = _batch(place, 'arrival = "trace"', "--only", "002")
    return "" if (code, results) == (0, 1) else f"--only 002: exit {code}: {said[-300:]}"


MANY, NUMBER = "timestamp: expected a time within 7 days", "timestamp: expected a number"
# Timestamps, their unit, and how long the load takes or how the trace is refused.
TRACES: list[tuple[str, list[object], str, float | str]] = [
    ("tr_ms", [0, 300, 600], "ms", 0.6),
    ("tr_unsorted", [0.6, 0, 0.3], "s", 0.6),
    ("tr_neg", [-1, -0.5, 0], "s", 1.0),
    ("tr_own_ms", [0, 0.2], "s", 0.2),
    ("mooncake's times", [0, 300, 900], "ms", 0.9),
    ("tr_epochms_zero", [0, 1_700_000_000_000], "s", ":2: " + MANY),
    ("tr_epochms_zero in ms", [0, 1_700_000_000_000], "ms", ":2: " + MANY),
    ("tr_epochns", [17 * 10**17, 17 * 10**17 + 5 * 10**8], "s", ":2: " + MANY),
    ("tr_huge", [0, 1e300], "s", ":2: " + MANY),
    ("tr_missing", [0, ...], "s", ":2: " + NUMBER),
    ("tr_null", [0, None], "s", ":2: " + NUMBER),
    ("tr_string", ["2023-11-16 18:15:46.68"], "s", ":1: " + NUMBER),
    ("tr_strnum", ["0.5"], "s", ":1: " + NUMBER),
]


def replayed(stamps: list[object], unit: str, expected: float | str, place: Path) -> str:
    rows = [{"prompt": "hi", **({} if at is ... else {"timestamp": at})} for at in stamps]
    (place / "001.jsonl").write_bytes(lines(*rows))
    flags = ("--arrival", "trace", "--trace-unit", unit, "--output-len", 3, "--json")
    with Recording() as server:
        answer = gatescope(place, "bench", "001.jsonl", "--base-url", server.url, *flags)
        sent = len(server.posted())
    if isinstance(expected, str):
        facts = _refused(answer.err, "001.jsonl" + expected) | {"none sent": sent == 0}
    else:
        took = (answer.data or {}).get("duration") or 0.0
        facts = {"all sent": sent == len(stamps), f"over {expected} s": expected <= took < 20}
    return wrong(facts, answer)


CASES = [
    *(Case("A10", name, partial(benched, name, data, n)) for name, data, n in FILES),
    Case("A10", "predict reads them all", predicted),
    Case("A10", "--batch reads them all", run_in_a_batch),
    *(Case("A9", name, partial(replayed, at, unit, n)) for name, at, unit, n in TRACES),
    Case("A9", "an odd trace in a batch", odd_trace_in_a_batch),
]
