"""Datasets in the layouts of benchmarks: JSON lines or one JSON array, of texts, prompts, chats, or
ShareGPT's conversations."""

from __future__ import annotations

import re
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

import msgspec

from core.errors import DatasetError
from core.files import NOT_JSON
from core.workload import dataset
from core.workload.dataset import Dataset, Prompt

HUMAN = ("human", "user", "")
CONVERSATIONS = ("conversations", "conversation")
TEXTS = ("text", "prompt", "messages", *CONVERSATIONS)
LAYOUT = 'an object with "text", "prompt", "messages" or "conversations"'
HINT = "a file holds one JSON object a line, or one JSON array"
MAX_SHOWN = 40


class _Mistake(Exception):
    """What is wrong with one prompt: the field, what was expected, what was found."""


def read(path: Path, index: str) -> Dataset:
    """Read a file of prompts, whichever layout it has.

    Of a conversation, the first human turn is sent. ShareGPT's conversations in which that turn is
    blank or has no answer are left out, as in vLLM's benchmarks. DatasetError names file, line and
    field of what cannot be used.
    """
    prompts: list[Prompt] = []
    places: list[str] = []
    left_out = 0
    try:
        with open(path, "rb") as file:
            for unit, number, row in _rows(path, file):
                place = f"{path}:{number}" if unit == "line" else f"{path}: {unit} {number}"
                try:
                    prompt = _prompt(row, number)
                except _Mistake as mistake:
                    raise DatasetError(f"{place}: {mistake}") from None
                if prompt is None:
                    left_out += 1
                else:
                    prompts.append(prompt)
                    places.append(place)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}") from None
    if not prompts:
        unanswered = (
            f": none of its {left_out} conversations has a human turn with an answer"
            if left_out
            else ""
        )
        raise DatasetError(f"{path}: contains no prompts{unanswered}")
    return Dataset(index, path, tuple(prompts), tuple(places))


def _rows(path: Path, file: BufferedReader) -> Iterator[tuple[str, int, Any]]:
    """Every value with its number, which counts lines or items."""
    first = dataset.to_first_byte(path, file)
    if file.peek(1).startswith(b"["):
        for number, item in enumerate(_array(path, file.read(), first), 1):
            yield "item", number, item
        return
    for number, line in dataset.lines(path, file, first):
        try:
            row = msgspec.json.decode(line)
        except NOT_JSON as error:
            raise DatasetError(
                f"{path}:{number}: not JSON: {dataset.why(line, error)}; {HINT}"
            ) from None
        yield "line", number, row


def _array(path: Path, data: bytes, first: int) -> list[Any]:
    try:
        found: list[Any] = msgspec.json.decode(data, type=list)
    except NOT_JSON as error:
        words = dataset.why(data, error)
        byte = re.search(r"\(byte (\d+)\)", words)
        line = first + data.count(b"\n", 0, int(byte.group(1)) if byte else len(data))
        raise DatasetError(f"{path}:{line}: not a JSON array: {words}; {HINT}") from None
    return found


def _prompt(row: Any, number: int) -> Prompt | None:
    """The prompt of one value; None for a conversation that is left out."""
    if isinstance(row, str):
        return Prompt(str(number), _not_blank("the text", row))
    if not isinstance(row, dict):
        raise _Mistake(f"expected {LAYOUT}, found {_shown(row)}")
    texts = {name: _text(name, row[name]) for name in TEXTS if row.get(name) is not None}
    if not texts:
        raise _Mistake(_no_text(row))
    text, *others = texts.values()
    if any(other != text for other in others):
        names = " and ".join(f'"{name}"' for name in texts)
        raise _Mistake(f"expected one text to send, found different ones in {names}; keep one")
    if text is None:
        return None
    return Prompt(
        _name("id", row.get("id")) or str(number),
        text,
        _name("category", row.get("category")),
        _timestamp(row.get("timestamp")),
    )


def _no_text(row: dict[str, Any]) -> str:
    if empty := [name for name in TEXTS if name in row]:
        return f"{empty[0]}: expected a text, found null"
    found = ", ".join(f'"{_short(name)}"' for name in list(row)[:5]) or "an empty one"
    return f"expected {LAYOUT}, found {found}"


def _text(field: str, value: Any) -> str | None:
    """What a field gives to send; None for a conversation that is left out."""
    if field in CONVERSATIONS:
        return _first_human(field, value, needs_answer=True)
    if isinstance(value, list) and field != "text" and all(isinstance(v, dict) for v in value):
        return _first_human(field, value, needs_answer=False)
    if not isinstance(value, str):
        raise _Mistake(f"{field}: expected a text, found {_shown(value)}")
    return _not_blank(field, value)


def _first_human(field: str, turns: Any, *, needs_answer: bool) -> str | None:
    """The text of the first human turn. Where an answer is needed: None if none follows, or if the
    turn is blank."""
    if not isinstance(turns, list):
        raise _Mistake(f"{field}: expected a list of turns, found {_shown(turns)}")
    for place, turn in enumerate(turns):
        where = f"{field}[{place}]"
        if not isinstance(turn, dict):
            raise _Mistake(f"{where}: expected a turn of a conversation, found {_shown(turn)}")
        if str(turn.get("from") or turn.get("role") or "").lower() in HUMAN:
            text = _said(where, turn)
            if not needs_answer:
                return _not_blank(where, text)
            return text if text.strip() and place + 1 < len(turns) else None
    if needs_answer:
        return None
    raise _Mistake(f"{field}: expected a turn of the user, found none")


def _said(where: str, turn: dict[str, Any]) -> str:
    """The text of a turn, which may come in parts."""
    name = next((name for name in ("value", "content") if name in turn), None)
    if name is None:
        raise _Mistake(f'{where}: expected a turn with "value" or "content", found neither')
    value = turn[name]
    if isinstance(value, list):
        return "".join(_part(f"{where}.{name}[{i}]", part) for i, part in enumerate(value))
    if not isinstance(value, str):
        raise _Mistake(f"{where}.{name}: expected a text, found {_shown(value)}")
    return value


def _part(where: str, part: Any) -> str:
    text = part.get("text") if isinstance(part, dict) else part
    if not isinstance(text, str):
        raise _Mistake(f"{where}: expected a part of text, found {_shown(part)}")
    return text


def _not_blank(field: str, text: str) -> str:
    if not text.strip():
        raise _Mistake(f"{field}: expected a text, found a blank one")
    return text


def _name(field: str, value: Any) -> str:
    """A name, which may be a number; "" if there is none."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _Mistake(f"{field}: expected a text or a number, found {_shown(value)}")
    return str(value)


def _timestamp(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Mistake(
            f"timestamp: expected a number, found {_shown(value)};"
            " leave the field out where the times do not matter"
        )
    try:
        return float(value)
    except OverflowError:
        raise _Mistake("timestamp: expected a number, found one that no clock shows") from None


def _shown(value: Any) -> str:
    """A value in a few words, on one line."""
    if isinstance(value, str):
        return repr(_short(value))
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return f"a list of {'texts' if value and isinstance(value[0], str) else 'other values'}"
    return str(msgspec.json.encode(value), "ascii")[:MAX_SHOWN]


def _short(text: str) -> str:
    text = text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
