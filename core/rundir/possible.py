"""Figures that nothing can have, in result files of any tool: NaN, infinite and negative ones are
unknown, and are named."""

from __future__ import annotations

import functools
import json
import math
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import structs

from core import files

if TYPE_CHECKING:
    from core.rundir.result import Result

SIGNED = ("seed", "delivery_lag_ms", "excess_squared")  # may be below 0
ROUNDING = -1e-9  # what an entropy or a Gini of 0 may come to
GAPS = "itls"
TIMES = ("ttfts", "ttfts_from_due")


def decode(data: bytes, kind: type[Result]) -> tuple[Result, list[str]]:
    """A result file's bytes as a `kind`, and what is wrong with its figures, a phrase each; those
    are None, or 0 if they are counts. An error of files.NOT_JSON if they are no result."""
    try:
        return _checked(msgspec.json.decode(data, type=kind))
    except msgspec.ValidationError:
        raise
    except files.NOT_JSON:
        loose = files.with_constants(data)
        if not isinstance(loose, dict):
            raise
    counts = [
        field.name
        for field in structs.fields(kind)
        if field.type is int and not files.is_finite(loose.get(field.name, 0))
    ]
    taken, odd = _checked(msgspec.convert({**loose, **dict.fromkeys(counts, 0)}, kind))
    return taken, [*(f"{name} is {json.dumps(loose[name])}" for name in counts), *odd]


def _checked(taken: Result) -> tuple[Result, list[str]]:
    if taken.request_rate == math.inf:  # how some tools write "inf"
        taken = structs.replace(taken, request_rate="inf")
    changes, odd = _without_impossible(taken)
    for name in TIMES:
        if n := sum(_is_impossible(value) for value in getattr(taken, name)):
            odd.append(f"{n} of {name}")
            changes[name] = [None if _is_impossible(v) else v for v in getattr(taken, name)]
    if n := sum(_is_impossible(gap) for gaps in taken.itls for gap in gaps):
        odd.append(f"{n} of {GAPS}")
        changes[GAPS] = [[gap for gap in gaps if not _is_impossible(gap)] for gaps in taken.itls]
    if taken.measured_imbalance:
        routing, phrases = _without_impossible(taken.measured_imbalance)
        changes["measured_imbalance"] = structs.replace(taken.measured_imbalance, **routing)
        odd += phrases
    return (structs.replace(taken, **changes) if changes else taken), odd


def _without_impossible(struct: msgspec.Struct) -> tuple[dict[str, Any], list[str]]:
    """The struct's own fields that hold an impossible number, with what stands there instead; and
    a phrase for each."""
    changes = {
        field.name: field.default
        for field in _fields(type(struct))
        if field.name not in SIGNED and _is_impossible(getattr(struct, field.name))
    }
    return changes, [f"{name} is {json.dumps(getattr(struct, name))}" for name in changes]


@functools.cache
def _fields(kind: type[msgspec.Struct]) -> tuple[structs.FieldInfo, ...]:
    """msgspec works them out from the annotations each time, which takes milliseconds."""
    return structs.fields(kind)


def _is_impossible(value: object) -> bool:
    return isinstance(value, int | float) and not (files.is_finite(value) and value >= ROUNDING)
