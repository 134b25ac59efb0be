"""Mistakes in an experiments.toml: where each is, what was expected there, and all of them as one
error in the order of the file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from core.errors import ConfigError

T = TypeVar("T", bound=msgspec.Struct)
Place = tuple[str | int, ...]
"""Keys and list positions, from the top level of the file."""
TITLES = {
    "experiment": "[experiment]",
    "model": "[model]",
    "backends": "[[backends]]",
    "dose": "[dose]",
    "sweep": "[sweep]",
    "search": "[search]",
    "cluster": "[cluster]",
}
STEP = re.compile(r"\.(\w+)|\[(\d+)\]|\[\.\.\.\]")  # of msgspec's paths: $.backends[0].env[...]
UNNAMED = "unnamed"


@dataclass(frozen=True, slots=True)
class Mistake:
    """What is wrong at `place`. `rests_on`: the values that it was judged by, if those are read
    without a mistake of their own."""

    place: Place
    text: str
    rests_on: tuple[Place, ...] = ()


def converted(raw: dict[str, Any], kind: type[T]) -> tuple[T, list[Mistake]]:
    """`raw` as a `kind`, with its default in place of each value that is wrong; and the mistakes.

    msgspec stops at the first wrong value, so that value is taken out of `raw` and the rest is
    tried again.
    """
    root = inspect.type_info(kind)
    mistakes = list(_unknown(raw, root, (), _homes(root)))
    while True:
        try:
            return msgspec.convert(raw, kind), mistakes
        except msgspec.ValidationError as error:
            found = _taken_out(raw, root, str(error), mistakes)
            if not any(_holds(known.place, found.place) for known in mistakes):
                mistakes.append(found)


def as_error(path: Path, raw: dict[str, Any], mistakes: Iterable[Mistake]) -> ConfigError:
    """A line for each mistake, in the order of `raw`, the whole file."""
    listed = list(mistakes)
    wrong = [mistake.place for mistake in listed if not mistake.rests_on]
    sound = [mistake for mistake in listed if not _rests_on_any(mistake, wrong)]
    sound.sort(key=lambda mistake: _order(raw, mistake.place))
    return ConfigError("\n".join(f"{path}: {_where(m.place)}: {m.text}" for m in sound))


def shown(value: object) -> str:
    """A value in a few words on one line; a table or a list by its kind only."""
    match value:
        case dict():
            return "a table"
        case list():
            return "a list"
        case bool():
            return str(value).lower()
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


# --- taking wrong values out ---


def _unknown(
    raw: Any, kind: inspect.Type, place: Place, homes: Mapping[str, str]
) -> Iterator[Mistake]:
    """Keys that a table does not have; they are taken out."""
    holder = _holder(kind)
    if isinstance(holder, inspect.StructType) and isinstance(raw, dict):
        kinds = {field.name: field.type for field in holder.fields}
        for key in list(raw):
            if key in kinds:
                yield from _unknown(raw[key], kinds[key], (*place, key), homes)
            else:
                del raw[key]
                noun = "key" if place else "table"
                yield Mistake((*place, key), f"unknown {noun}; {_hint(key, list(kinds), homes)}")
    if isinstance(holder, inspect.ListType) and isinstance(raw, list):
        for number, item in enumerate(raw):
            yield from _unknown(item, holder.item_type, (*place, number), homes)


def _taken_out(
    raw: dict[str, Any], root: inspect.Type, said: str, known: Sequence[Mistake]
) -> Mistake:
    """The mistake that msgspec's error names, once its value is out of `raw`."""
    *steps, last = _steps(raw, said)
    holder, kind = _inside(raw, steps), _kind(root, [*steps, last])
    value = holder[last]
    if isinstance(kind, inspect.StructType):
        if isinstance(value, dict):
            missing = next(f.name for f in kind.fields if f.required and f.name not in value)
            value[missing] = UNNAMED
            return Mistake((*steps, last, missing), "expected a value, the key is missing")
        holder[last] = {}
    else:
        del holder[last]
    text = f"expected {_expected(kind, value)}, got {shown(value)}"
    if isinstance(kind, inspect.StructType) or isinstance(last, str):
        return Mistake((*steps, last), text)
    before = sum(m.place[:-1] == tuple(steps) for m in known)  # items taken out of this list
    return Mistake((*steps, last + before), text)


def _steps(raw: dict[str, Any], said: str) -> list[str | int]:
    steps: list[str | int] = []
    for name, number in STEP.findall(said.rpartition(" - at `$")[2]):
        if name or number:
            steps.append(name or int(number))
        else:  # msgspec does not name the key of a table of texts
            table = _inside(raw, steps)
            steps.append(next(k for k, v in table.items() if not isinstance(v, str) or "\0" in v))
    return steps


def _inside(raw: Any, steps: Iterable[str | int]) -> Any:
    for step in steps:
        raw = raw[step]
    return raw


# --- kinds of values ---


def _holder(kind: inspect.Type) -> inspect.Type:
    """The table or list that a value of this kind can be, else the kind itself."""
    if isinstance(kind, inspect.Metadata):
        return _holder(kind.type)
    if isinstance(kind, inspect.UnionType):
        holders = (inspect.StructType, inspect.ListType, inspect.DictType)
        return next((each for each in kind.types if isinstance(each, holders)), kind)
    return kind


def _kind(kind: inspect.Type, steps: Iterable[str | int]) -> inspect.Type:
    """The kind of the value there."""
    for step in steps:
        match _holder(kind):
            case inspect.StructType(fields=fields):
                kind = next(field.type for field in fields if field.name == step)
            case inspect.ListType(item_type=item):
                kind = item
            case inspect.DictType(value_type=item):
                kind = item
    return kind


def _expected(kind: inspect.Type, value: object) -> str:
    if isinstance(value, str) and "\0" in value:  # no process takes one as argument or environment
        return "a text without NUL"
    match kind:
        case inspect.Metadata(extra_json_schema={"description": str(words)}):
            return words
        case inspect.UnionType(types=(first, *_)):  # the other is null
            return _expected(first, value)
        case inspect.LiteralType(values=values):
            return " or ".join(f'"{choice}"' for choice in values)
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            return f"a whole number{_limits(kind, value)}"
        case inspect.FloatType():
            return f"a number{_limits(kind, value)}"
        case inspect.StrType(min_length=least):
            return "a text that is not empty" if least else "a text"
        case inspect.ListType():
            return "a list"
    return "a table"


def _limits(kind: inspect.IntType | inspect.FloatType, value: object) -> str:
    if kind.le is not None and isinstance(value, int | float) and value > kind.le:
        return f" of at most {kind.le:.0f}"
    if kind.ge is not None:
        return f" of at least {kind.ge:g}"
    return "" if kind.gt is None else f" above {kind.gt:g}"


# --- words ---


def _where(place: Place) -> str:
    """`[[backends]] number 2, extra_args, item 1`."""
    table, *rest = place
    words = [TITLES.get(str(table)) or f"the top level, {_plain(table)}"]
    if rest and isinstance(rest[0], int):
        words[0] += f" number {rest[0] + 1}"
        rest = rest[1:]
    words += [f"item {s + 1}" if isinstance(s, int) else _plain(s) for s in rest]
    return ", ".join(words)


def _plain(key: str | int) -> str:
    """A key as it is written: bare, or in quotes where it would break the line."""
    text = str(key)
    return text if text.isidentifier() and len(text) <= 60 else shown(text)


def _hint(key: str, names: Sequence[str], homes: Mapping[str, str]) -> str:
    """Where an unknown key belongs, else the nearest name, else all names."""
    if key in homes:
        return f"it belongs in {homes[key]}"
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"


def _homes(root: inspect.Type) -> dict[str, str]:
    """Key → title of the first table that has it."""
    homes: dict[str, str] = {}
    for table in _fields(root):
        for field in _fields(table.type):
            homes.setdefault(field.name, TITLES[table.name])
    return homes


def _fields(kind: inspect.Type) -> tuple[inspect.Field, ...]:
    """The keys of a table, or of each table in a list."""
    match _holder(kind):
        case inspect.StructType(fields=fields):
            return fields
        case inspect.ListType(item_type=item):
            return _fields(item)
    return ()


def _order(raw: Any, place: Place) -> tuple[int, ...]:
    """Sorts places as they stand in the file; a missing key comes last in its table."""
    order: list[int] = []
    for step in place:
        steps = list(raw) if isinstance(raw, dict) else list(range(len(raw)))
        if step not in steps:
            return (*order, len(steps))
        order.append(steps.index(step))
        raw = raw[step]
    return tuple(order)


def _rests_on_any(mistake: Mistake, wrong: Iterable[Place]) -> bool:
    return any(
        _holds(place, value) or _holds(value, place)
        for place in wrong
        for value in mistake.rests_on
    )


def _holds(outer: Place, inner: Place) -> bool:
    return inner[: len(outer)] == outer
