"""A data set: one JSONL file of prompts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import msgspec

MAX_LINE_BYTES = 1 << 20


class DatasetError(Exception):
    """A data set file that cannot be used; the text names file and line."""


class Prompt(msgspec.Struct, frozen=True):
    """One line: its id, the text that is sent, and what kind of text it is."""

    id: str
    text: str
    category: str = ""


@dataclass(frozen=True, slots=True)
class Dataset:
    """`index` ("001") names the data set's files in every run directory."""

    index: str
    path: Path
    prompts: tuple[Prompt, ...]


def index_of(path: Path, place: int) -> str:
    """The index in the file's name (`007_0.5546.jsonl` → "007"), else its place (from 1) in the sorted list."""
    found = re.match(r"(\d{3,})[_.]", path.name)
    return found.group(1) if found else f"{place:03d}"


def read(path: Path, index: str) -> Dataset:
    """Read a JSONL file. DatasetError for a line that is not {"id", "text", "category"} or a file without prompts."""
    decoder = msgspec.json.Decoder(Prompt)
    prompts: list[Prompt] = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if len(line) > MAX_LINE_BYTES:
            raise DatasetError(f"{path}:{number}: line of {len(line)} bytes, at most {MAX_LINE_BYTES} are read")
        try:
            prompt = decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DatasetError(f'{path}:{number}: expected {{"id": …, "text": …, "category": …}}: {error}') from None
        if not prompt.text.strip():
            raise DatasetError(f"{path}:{number}: expected a text, it is blank")
        prompts.append(prompt)
    if not prompts:
        raise DatasetError(f"{path}: holds no prompt")
    return Dataset(index, path, tuple(prompts))
