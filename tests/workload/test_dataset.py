"""Datasets: what a file of prompts may hold, and that a bad line is named by file and number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.oracle import ORACLE, needs_oracle

from core.errors import DatasetError
from core.workload import dataset
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
        dataset.read(file, "001")
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
    assert dataset.read(written(tmp_path, b"\n".join(lines)), "001") == Dataset(
        "001",
        tmp_path / "001_0.5000.jsonl",
        (Prompt("a", "b", "c"), Prompt("b", "second", ""), Prompt("a", "b", "c")),
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
    assert dataset.read(written(tmp_path, data), "001").prompts == (Prompt("a", "b", "c"),)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b'{"id": "a", "text": "\\u0000\\n\\ud83d\\ude00"}', "\0\n😀"),
        ('{"id": "a", "text": "żółć"}'.encode(), "żółć"),
        (b'{"id": "a", "text": "first", "text": "last"}', "last"),
    ],
)
def test_texts_may_hold_any_character(tmp_path: Path, line: bytes, text: str) -> None:
    assert dataset.read(written(tmp_path, line), "001").prompts[0].text == text


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "Input data was truncated"),
        (b"[]", "Expected `object`, got `array`"),
        (b"null", "Expected `object`, got `null`"),
        (LINE + LINE, "JSON is malformed: trailing characters"),
        (b'{"id": "a"}', "Object missing required field `text`"),
        (b'{"text": "a"}', "Object missing required field `id`"),
        (b'{"id": 1, "text": "a"}', "Expected `str`, got `int` - at `$.id`"),
        (b'{"id": "a", "text": null}', "Expected `str`, got `null` - at `$.text`"),
        (b'{"id": "a", "text": "b\xff"}', "'utf-8' codec can't decode byte 0xff"),
        (b'{"id": "a", "text": "\xed\xa0\x80"}', "'utf-8' codec can't decode byte 0xed"),
        (b'{"id": "a", "text": "\\ud800"}', "\\ud800 is half a surrogate pair, not a character"),
        (
            b'{"id": "a", "text": "\\ud83d\\ude00\\uDC00"}',
            "\\uDC00 is half a surrogate pair, not a character",
        ),
        (b'{"id": "a", "text": "b\0"}', "JSON is malformed: invalid character"),
        (
            b'{"id": "a", "text": "b", "c": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            "maximum recursion depth exceeded",
        ),
    ],
    ids=range(14),
)
def test_a_bad_line_is_named_by_its_number(tmp_path: Path, line: bytes, said: str) -> None:
    found = mistake(written(tmp_path, LINE + b"\n\n" + line + b"\n"))
    assert found.startswith(f':3: expected {{"id": …, "text": …, "category": …}}: {said}')


def test_a_blank_text_is_refused(tmp_path: Path) -> None:
    assert (
        mistake(written(tmp_path, b'{"id": "a", "text": " \\n"}'))
        == ":1: expected a text, found a blank one"
    )


def test_a_line_may_be_a_mebibyte_and_no_longer(tmp_path: Path) -> None:
    frame = len(b'{"id": "a", "text": ""}')
    for more, ending in ((0, b""), (0, b"\n"), (0, b"\r\n")):
        line = b'{"id": "a", "text": "' + b"x" * (MAX_LINE_BYTES - frame + more) + b'"}'
        assert (
            len(dataset.read(written(tmp_path, LINE + b"\n" + line + ending), "001").prompts) == 2
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
        read = dataset.read(file, "001").prompts
        assert [(p.id, p.text, p.category) for p in read] == [
            (r["id"], r["text"], r["category"]) for r in rows
        ]


# --- whatever is in the file ---


texts = st.text(st.characters(codec="utf-8"))
prompts = st.builds(Prompt, texts, texts.filter(lambda t: bool(t.strip())), texts)
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
    assert dataset.read(written(folder, data.encode()), "001").prompts == tuple(prompts)


def read_or_refused(folder: Path, data: bytes) -> None:
    """Prompts that every server can be sent, or a DatasetError of one line."""
    file = written(folder, data)
    try:
        found: Dataset | DatasetError = dataset.read(file, "001")
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
