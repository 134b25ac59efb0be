"""A dataset: the prompts of one file, and the bytes that such a file may hold."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import msgspec

from core.errors import DatasetError

MAX_LINE_BYTES = 1 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
NOT_TEXT = {  # how files that are not UTF-8 text begin
    b"\xff\xfe": "is text in UTF-16; save it as UTF-8",
    b"\xfe\xff": "is text in UTF-16; save it as UTF-8",
    b"\x1f\x8b": "is compressed with gzip; unpack it first",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; unpack it first",
    b"PK\x03\x04": "is a zip archive; unpack it first",
    b"PAR1": "is a Parquet table; write it as JSON lines first",
}
HALF_A_PAIR = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)


class Prompt(msgspec.Struct, frozen=True):
    """What one request sends: its id, the text, the kind of text, and in a trace the time at which
    it was sent (in the trace's own unit)."""

    id: str
    text: str
    category: str = ""
    timestamp: float | None = None


@dataclass(frozen=True, slots=True)
class Dataset:
    """`index` ("001") names the dataset's files in every run directory. `places`: where each prompt
    stands, as errors name it ("001.jsonl:3", or "001.json: item 3" of an array)."""

    index: str
    path: Path
    prompts: tuple[Prompt, ...]
    places: tuple[str, ...] = ()


def index_of(path: Path, place: int) -> str:
    """The index in the file's name (`007_0.5546.jsonl` → "007"), else its place (from 1) in the
    sorted list."""
    found = re.match(r"([0-9]{3,})[_.]", path.name)
    return found.group(1) if found else f"{place:03d}"


def to_first_byte(path: Path, file: BufferedReader) -> int:
    """Move to the first byte of text; the number of its line. DatasetError for a file that is not
    text. Only peeks, since a pipe can be read once."""
    number = 1
    for magic, words in NOT_TEXT.items():
        if file.peek(len(magic)).startswith(magic):
            raise DatasetError(f"{path}: {words}")
    while (found := file.peek(3)) and (found[:1].isspace() or found.startswith(BYTE_ORDER_MARK)):
        number += found.startswith(b"\n")
        file.read(1 if found[:1].isspace() else len(BYTE_ORDER_MARK))
    return number


def lines(path: Path, file: BufferedReader, first: int = 1) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, stripped, with their numbers from `first` on; only one is in
    memory at a time. DatasetError for a longer line than MAX_LINE_BYTES.

    A byte order mark may begin any line: `cat` joins files that each have one.
    """
    longest = MAX_LINE_BYTES + len(BYTE_ORDER_MARK) + 2
    for number, line in enumerate(iter(lambda: file.readline(longest), b""), first):
        stripped = line.strip().removeprefix(BYTE_ORDER_MARK).strip()
        if len(stripped) > MAX_LINE_BYTES:
            raise DatasetError(
                f"{path}:{number}: expected a line of at most {MAX_LINE_BYTES} bytes, "
                "found a longer one"
            )
        if stripped:
            yield number, stripped


def why(data: bytes, error: Exception) -> str:
    """What is wrong with JSON that msgspec refused.

    msgspec does not say which byte is not UTF-8, and it mistakes half a surrogate pair for the end
    of the input.
    """
    try:
        data.decode()
    except UnicodeDecodeError as undecodable:
        return str(undecodable)
    half = HALF_A_PAIR.search(data)
    return (
        f"{half.group().decode()} is half a surrogate pair, not a character" if half else str(error)
    )
