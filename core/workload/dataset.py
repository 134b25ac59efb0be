"""A dataset: one JSONL file of prompts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from core.errors import DatasetError
from core.files import NOT_JSON

MAX_LINE_BYTES = 1 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
HALF_A_PAIR = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)


class Prompt(msgspec.Struct, frozen=True):
    """One line: its id, the text to send, the kind of text, and in a trace the time at which it was
    sent (seconds)."""

    id: str
    text: str
    category: str = ""
    timestamp: float | None = None


@dataclass(frozen=True, slots=True)
class Dataset:
    """`index` ("001") names the dataset's files in every run directory."""

    index: str
    path: Path
    prompts: tuple[Prompt, ...]


def index_of(path: Path, place: int) -> str:
    """The index in the file's name (`007_0.5546.jsonl` → "007"), else its place (from 1) in the
    sorted list."""
    found = re.match(r"([0-9]{3,})[_.]", path.name)
    return found.group(1) if found else f"{place:03d}"


def read(path: Path, index: str) -> Dataset:
    """Read a JSONL file. DatasetError if a line is not {"id", "text", "category"}, or if there are
    no prompts."""
    try:
        with open(path, "rb") as file:
            prompts = tuple(_prompts(path, file))
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}") from None
    if not prompts:
        raise DatasetError(f"{path}: contains no prompts")
    return Dataset(index, path, prompts)


def _prompts(path: Path, file: BinaryIO) -> Iterator[Prompt]:
    for number, line in lines(path, file):
        yield _prompt(f"{path}:{number}", line)


def lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, stripped, with their numbers; only one is in memory at a time.
    DatasetError for a longer line than MAX_LINE_BYTES."""
    for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 2), b""), 1):
        stripped = line.removeprefix(BYTE_ORDER_MARK).strip() if number == 1 else line.strip()
        if len(stripped) > MAX_LINE_BYTES:
            raise DatasetError(
                f"{path}:{number}: expected a line of at most {MAX_LINE_BYTES} bytes, "
                "found a longer one"
            )
        if stripped:
            yield number, stripped


def _prompt(where: str, line: bytes) -> Prompt:
    try:
        prompt = _decoder.decode(line)
    except NOT_JSON as error:
        raise DatasetError(
            f'{where}: expected {{"id": …, "text": …, "category": …}}: {why(line, error)}'
        ) from None
    if not prompt.text.strip():
        raise DatasetError(f"{where}: expected a text, found a blank one")
    return prompt


def why(line: bytes, error: Exception) -> str:
    """What is wrong with JSON that msgspec refused.

    msgspec does not say which byte is not UTF-8, and it mistakes half a surrogate pair for the end
    of the input.
    """
    try:
        line.decode()
    except UnicodeDecodeError as undecodable:
        return str(undecodable)
    half = HALF_A_PAIR.search(line)
    return (
        f"{half.group().decode()} is half a surrogate pair, not a character" if half else str(error)
    )


_decoder = msgspec.json.Decoder(Prompt)
