"""Datasets in the layouts of other benchmarks: ShareGPT's JSON, and JSONL with a `prompt`."""

from __future__ import annotations

from pathlib import Path

import msgspec

from core.errors import DatasetError
from core.files import NOT_JSON
from core.workload import dataset
from core.workload.dataset import Dataset, Prompt

HUMAN = ("human", "user")


class _Turn(msgspec.Struct):
    value: str = ""
    speaker: str = msgspec.field(name="from", default="")


class _Conversation(msgspec.Struct):
    conversations: list[_Turn] = []
    id: str | int = ""


class _Line(msgspec.Struct):
    prompt: str
    id: str | int = ""
    timestamp: float | None = None


def read(path: Path, index: str) -> Dataset:
    """Read our JSONL ({"id", "text", …}), JSONL of {"prompt": …}, or ShareGPT (a JSON array).

    The start of the file decides which it is. A ShareGPT conversation gives its first human turn;
    those without an answer are left out, as in vLLM's benchmarks. DatasetError names what is wrong.
    """
    first = _first_line(path)
    if first.startswith(b"["):
        prompts = _sharegpt(path)
    elif _has_prompt(first):
        prompts = _with_prompt(path)
    else:
        return dataset.read(path, index)
    if not prompts:
        raise DatasetError(f"{path}: contains no prompts")
    return Dataset(index, path, prompts)


def _first_line(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            pieces = iter(lambda: file.readline(1 << 20), b"")
            return next((stripped for piece in pieces if (stripped := piece.strip())), b"")
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}") from None


def _has_prompt(line: bytes) -> bool:
    try:
        fields = msgspec.json.decode(line)
    except NOT_JSON:
        return False
    return isinstance(fields, dict) and "prompt" in fields and "text" not in fields


def _sharegpt(path: Path) -> tuple[Prompt, ...]:
    data = path.read_bytes()
    try:
        conversations = msgspec.json.decode(data, type=list[_Conversation])
    except NOT_JSON as error:
        layout = '[{"conversations": [{"value": …}, …]}, …]'
        raise DatasetError(
            f"{path}: expected ShareGPT's {layout}: {dataset.why(data, error)}"
        ) from None
    return tuple(
        Prompt(str(talk.id or place), talk.conversations[0].value)
        for place, talk in enumerate(conversations, 1)
        if len(talk.conversations) >= 2 and _opens(talk.conversations[0])
    )


def _opens(turn: _Turn) -> bool:
    return turn.speaker in ("", *HUMAN) and bool(turn.value.strip())


def _with_prompt(path: Path) -> tuple[Prompt, ...]:
    decoder = msgspec.json.Decoder(_Line)
    prompts = []
    with open(path, "rb") as file:
        for number, line in dataset.lines(path, file):
            try:
                fields = decoder.decode(line)
            except NOT_JSON as error:
                raise DatasetError(
                    f'{path}:{number}: expected {{"prompt": …}}: {dataset.why(line, error)}'
                ) from None
            if not fields.prompt.strip():
                raise DatasetError(f"{path}:{number}: expected a prompt, found a blank one")
            prompts.append(
                Prompt(str(fields.id or number), fields.prompt, timestamp=fields.timestamp)
            )
    return tuple(prompts)
