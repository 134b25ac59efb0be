"""Datasets: what a file of prompts may hold, and that a bad line is named by file and number."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.oracle import ORACLE, needs_oracle

from core.errors import DatasetError
from core.workload import dataset, formats
from core.workload.dataset import MAX_LINE_BYTES, Dataset, Prompt

DATASETS = ORACLE / "datasets"
LINE = b'{"id": "a", "text": "b", "category": "c"}'


def written(folder: Path, data: bytes) -> Path:
    file = folder / "001_0.5000.jsonl"
    file.write_bytes(data)
    return file


def mistake(file: Path) -> str:
    """The text of the DatasetError, after the file's name."""
    with pytest.raises(DatasetError) as caught:
        formats.read(file, "001")
    said = str(caught.value)
    assert said.startswith(str(file))
    assert len(said.splitlines()) == 1
    return said.removeprefix(str(file))


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("007_0.5546.jsonl", "007"),
        ("1234_0.5.jsonl", "1234"),
        ("050.jsonl", "050"),
        ("12_0.5.jsonl", "003"),
        ("chat.jsonl", "003"),
        ("007chat.jsonl", "003"),
        ("٠٠٧_0.5.jsonl", "003"),
    ],
)
def test_the_index_is_in_the_name_else_the_place(name: str, index: str) -> None:
    assert dataset.index_of(Path("some/folder") / name, 3) == index


def test_lines_are_read_in_order_with_their_repeats(tmp_path: Path) -> None:
    lines = [LINE, b'{"text": "second", "id": "b", "more": [1, {"x": null}]}', LINE]
    assert formats.read(written(tmp_path, b"\n".join(lines)), "001") == Dataset(
        "001",
        tmp_path / "001_0.5000.jsonl",
        (Prompt("a", "b", "c"), Prompt("b", "second", ""), Prompt("a", "b", "c")),
        tuple(f"{tmp_path}/001_0.5000.jsonl:{line}" for line in (1, 2, 3)),
    )


@pytest.mark.parametrize(
    "data",
    [
        LINE + b"\n",
        LINE + b"\r\n",
        b"\n \n\t\n" + LINE + b"\n\n",
        b"\xef\xbb\xbf" + LINE,
        b"  " + LINE + b"  \n",
    ],
    ids=["newline", "crlf", "blank lines", "byte order mark", "spaces"],
)
def test_what_editors_leave_around_a_line_is_no_part_of_it(tmp_path: Path, data: bytes) -> None:
    assert formats.read(written(tmp_path, data), "001").prompts == (Prompt("a", "b", "c"),)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b'{"id": "a", "text": "\\u0000\\n\\ud83d\\ude00"}', "\0\n😀"),
        ('{"id": "a", "text": "żółć"}'.encode(), "żółć"),
        (b'{"id": "a", "text": "first", "text": "last"}', "last"),
    ],
)
def test_texts_may_hold_any_character(tmp_path: Path, line: bytes, text: str) -> None:
    assert formats.read(written(tmp_path, line), "001").prompts[0].text == text


NO_JSON = "not JSON: "
NO_TEXT = 'expected an object with "text", "prompt", "messages" or "conversations", found '


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", NO_JSON + "Input data was truncated; a file holds one JSON object a line"),
        (b"[]", NO_TEXT + "a list"),
        (b"null", NO_TEXT + "null"),
        (LINE + LINE, NO_JSON + "JSON is malformed: trailing characters"),
        (LINE + b",", NO_JSON + "JSON is malformed: trailing characters"),
        (b'{"id": "a"}', NO_TEXT + '"id"'),
        (b"{}", NO_TEXT + "an empty one"),
        (b'{"id": [1], "text": "a"}', "id: expected a text or a number, found a list"),
        (b'{"category": true, "text": "a"}', "category: expected a text or a number, found true"),
        (b'{"id": "a", "text": null}', "text: expected a text, found null"),
        (b'{"id": "a", "text": 5}', "text: expected a text, found 5"),
        (b'{"prompt": "a", "text": "b"}', "expected one text to send, found different ones in"),
        (b'{"id": "a", "text": "b\xff"}', NO_JSON + "'utf-8' codec can't decode byte 0xff"),
        (b'{"id": "a", "text": "\xed\xa0\x80"}', NO_JSON + "'utf-8' codec can't decode byte 0xed"),
        (b'{"id": "a", "text": "\\ud800"}', NO_JSON + "\\ud800 is half a surrogate pair"),
        (
            b'{"id": "a", "text": "\\ud83d\\ude00\\uDC00"}',
            NO_JSON + "\\uDC00 is half a surrogate pair, not a character",
        ),
        (b'{"id": "a", "text": "b\0"}', NO_JSON + "JSON is malformed: invalid character"),
        (
            b'{"id": "a", "text": "b", "c": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            NO_JSON + "maximum recursion depth exceeded",
        ),
        (b'{"text": "b", "timestamp": "12:00"}', "timestamp: expected a number, found '12:00'"),
        (b'{"text": "b", "timestamp": NaN}', NO_JSON),
        (b'{"text": "b", "timestamp": 1e999}', NO_JSON),
        (b'{"text": "b", "timestamp": 1' + b"0" * 400 + b"}", ""),
        (b'{"prompt": ["a", "b"]}', "prompt: expected a text, found a list of texts"),
        (b'{"prompt": [1, 2]}', "prompt: expected a text, found a list of other values"),
        (b'{"messages": [{"role": "system", "content": "a"}]}', "messages: expected a turn of the"),
        (b'{"messages": [{"role": "user"}]}', 'messages[0]: expected a turn with "value" or'),
        (
            b'{"messages": [{"content": [{"type": "image_url"}]}]}',
            "messages[0].content[0]: expected a part of text, found an object",
        ),
        (b'{"conversations": "a"}', "conversations: expected a list of turns, found 'a'"),
        (b'{"conversations": ["a"]}', "conversations[0]: expected a turn of a conversation"),
        (
            b'{"conversations": [{"from": "human", "value": null}]}',
            "conversations[0].value: expected a text, found null",
        ),
        (b'{"mess\\nage": "a"}', NO_TEXT + '"mess\N{REPLACEMENT CHARACTER}age"'),
    ],
    ids=itertools.count(),
)
def test_a_bad_line_is_named_by_its_number_and_field(
    tmp_path: Path, line: bytes, said: str
) -> None:
    found = mistake(written(tmp_path, LINE + b"\n\n" + line + b"\n"))
    assert found.startswith(f":3: {said}")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'[{"prompt": "a"},\n5]', ": item 2: " + NO_TEXT + "5"),
        (b'[{"prompt": "a"},\n{"prompt": ""}]', ": item 2: prompt: expected a text, found a blank"),
        (b'\n[{"prompt": "a"},\n{"prompt" "b"}\n]', ":3: not a JSON array: JSON is malformed"),
        (b'[{"prompt": "a"}\n', ":2: not a JSON array: Input data was truncated"),
        (b'{"data": [{"prompt": "a"}]}', ":1: " + NO_TEXT + '"data"'),
        (b'{\n "prompt": "a"\n}', ":1: not JSON: Input data was truncated"),
        (b"prompt,id\nhello,1\n", ":1: not JSON: JSON is malformed"),
        (gzip.compress(LINE), ": is compressed with gzip; unpack it first"),
        (LINE.decode().encode("utf-16"), ": is text in UTF-16; save it as UTF-8"),
        (
            b'[{"conversations": []}, {"conversations": [{"value": "unanswered"}]}]',
            ": contains no prompts: none of its 2 conversations has a human turn with an answer",
        ),
    ],
    ids=itertools.count(),
)
def test_a_file_of_something_else_is_named(tmp_path: Path, data: bytes, said: str) -> None:
    assert mistake(written(tmp_path, data)).startswith(said)


def turns(*said: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": who, "value": text} for who, text in said]


def messages(*said: tuple[str, object]) -> list[dict[str, object]]:
    return [{"role": who, "content": text} for who, text in said]


TALK = turns(("system", "be nice"), ("gpt", "welcome"), ("human", "hi"), ("gpt", "yo"))
LAYOUTS: list[tuple[object, list[tuple[str, str]]]] = [  # a file's values, and (id, text) of each
    ([{"text": "a"}, {"text": "b"}], [("1", "a"), ("2", "b")]),
    ([{"id": 7, "text": "a"}, {"id": 0, "prompt": "b"}], [("7", "a"), ("0", "b")]),
    ([{"id": None, "prompt": "a"}, {"id": "", "prompt": "b"}], [("1", "a"), ("2", "b")]),
    ([{"id": 10**30, "prompt": "a"}], [(str(10**30), "a")]),
    (["a", "b"], [("1", "a"), ("2", "b")]),
    ([{"prompt": "a", "messages": messages(("user", "a"))}], [("1", "a")]),
    ([{"prompt": messages(("system", "s"), ("user", "a"))}], [("1", "a")]),
    ([{"messages": messages(("user", "a"), ("assistant", None))}], [("1", "a")]),
    ([{"messages": messages(("User", [{"type": "text", "text": "a"}, "b"]))}], [("1", "ab")]),
    ([{"id": "c", "conversations": TALK}], [("c", "hi")]),
    ([{"id": "c", "conversations": messages(("user", "a"), ("assistant", "b"))}], [("c", "a")]),
    ([{"conversation": turns(("user", "a"), ("bing", "b"))}], [("1", "a")]),
    (
        [
            {"conversations": turns(("human", "unanswered"))},
            {"conversations": turns(("gpt", "first"), ("human", "unanswered"))},
            {"conversations": turns(("human", " "), ("gpt", "to nothing"))},
            {"conversations": []},
            {"conversations": turns(("human", "kept"), ("gpt", "answer"))},
        ],
        [("5", "kept")],
    ),
]
FILES = {
    "lines": lambda rows: "\n".join(map(json.dumps, rows)).encode(),
    "lines, each with a byte order mark": lambda rows: b"".join(
        b"\xef\xbb\xbf" + json.dumps(row).encode() + b"\r\n" for row in rows
    ),
    "array": lambda rows: json.dumps(rows).encode(),
    "array of many lines with a byte order mark": lambda rows: (
        b"\xef\xbb\xbf\n" + json.dumps(rows, indent=1).encode()
    ),
}


@pytest.mark.parametrize("written_as", FILES)
@pytest.mark.parametrize(("rows", "read"), LAYOUTS, ids=itertools.count())
def test_every_layout_is_read_in_lines_and_in_an_array(
    tmp_path: Path, rows: object, read: list[tuple[str, str]], written_as: str
) -> None:
    found = formats.read(written(tmp_path, FILES[written_as](rows)), "001").prompts
    assert [(p.id, p.text) for p in found] == read


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe.jsonl")
    writer = threading.Thread(target=pipe.write_bytes, args=(b"\n\n" + LINE + b"\n" + LINE,))
    writer.start()
    data = formats.read(pipe, "001")
    writer.join()
    assert (len(data.prompts), data.places) == (2, (f"{pipe}:3", f"{pipe}:4"))


def test_a_blank_text_is_refused(tmp_path: Path) -> None:
    assert (
        mistake(written(tmp_path, b'{"id": "a", "text": " \\n"}'))
        == ":1: text: expected a text, found a blank one"
    )


def test_a_line_may_be_a_mebibyte_and_no_longer(tmp_path: Path) -> None:
    frame = len(b'{"id": "a", "text": ""}')
    for more, ending in ((0, b""), (0, b"\n"), (0, b"\r\n")):
        line = b'{"id": "a", "text": "' + b"x" * (MAX_LINE_BYTES - frame + more) + b'"}'
        assert (
            len(formats.read(written(tmp_path, LINE + b"\n" + line + ending), "001").prompts) == 2
        )
    assert mistake(written(tmp_path, LINE + b"\n" + line + b"x")).startswith(
        f":2: expected a line of at most {MAX_LINE_BYTES} bytes, found a longer one"
    )


@pytest.mark.parametrize("data", [b"", b"\n \n"])
def test_a_file_without_a_prompt_is_refused(tmp_path: Path, data: bytes) -> None:
    assert mistake(written(tmp_path, data)) == ": contains no prompts"


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert mistake(tmp_path / "none.jsonl") == ": cannot be read: No such file or directory"
    assert mistake(tmp_path) == ": cannot be read: Is a directory"


@needs_oracle
def test_the_published_datasets_are_read_whole() -> None:
    for file in sorted(DATASETS.glob("*.jsonl")):
        rows = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
        read = formats.read(file, "001").prompts
        assert [(p.id, p.text, p.category) for p in read] == [
            (r["id"], r["text"], r["category"]) for r in rows
        ]


# --- whatever is in the file ---


texts = st.text(st.characters(codec="utf-8"))
prompts = st.builds(Prompt, texts.filter(bool), texts.filter(lambda t: bool(t.strip())), texts)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda v: (
        st.lists(v, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "text", "category", "x"]), v, max_size=4)
    ),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("datasets")


@given(
    prompts=st.lists(prompts, min_size=1, max_size=5),
    escape=st.booleans(),
    ending=st.sampled_from(["\n", "\r\n"]),
)
def test_what_is_written_is_read_back(
    folder: Path, prompts: list[Prompt], escape: bool, ending: str
) -> None:
    rows = ({"id": p.id, "text": p.text, "category": p.category} for p in prompts)
    data = "".join(json.dumps(row, ensure_ascii=escape) + ending for row in rows)
    assert formats.read(written(folder, data.encode()), "001").prompts == tuple(prompts)


def read_or_refused(folder: Path, data: bytes) -> None:
    """Prompts that every server can be sent, or a DatasetError of one line."""
    file = written(folder, data)
    try:
        found: Dataset | DatasetError = formats.read(file, "001")
    except DatasetError as error:
        found = error
    if isinstance(found, DatasetError):
        assert str(found).startswith(str(file))
        assert len(str(found).splitlines()) == 1
    else:
        assert all(p.text.strip() and p.text.encode() for p in found.prompts)


@given(rows=st.lists(json_values, min_size=1, max_size=3), escape=st.booleans())
def test_any_json_is_read_or_refused_in_one_line(
    folder: Path, rows: list[object], escape: bool
) -> None:
    data = "\n".join(json.dumps(row, ensure_ascii=escape) for row in rows)
    read_or_refused(folder, data.encode("utf-8", "surrogatepass"))


@given(data=st.binary(max_size=80), tail=st.binary(max_size=20))
def test_any_bytes_are_read_or_refused_in_one_line(folder: Path, data: bytes, tail: bytes) -> None:
    read_or_refused(folder, data)
    read_or_refused(folder, LINE[:-1] + data + b"}\n" + LINE + tail)
