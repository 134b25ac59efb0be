"""Hypothesis strategies for every event of the journal."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from hypothesis import strategies as st

from core.experiment import events
from core.experiment.events import AnyEvent

KINDS: tuple[type[events.Event], ...] = get_args(AnyEvent)
finite = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(codec="utf-8"), max_size=8)
whole = st.integers(-(2**63), 2**63 - 1)


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of a field of this type, without NaN, which JSON cannot express."""
    plain = {str: texts, int: whole, float: finite, bool: st.booleans(), type(None): st.none()}
    if kind in plain:
        return plain[kind]
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return st.builds(
            kind, **{name: values(hint) for name, hint in get_type_hints(kind).items()}
        )
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    inner = [values(part) for part in get_args(kind)]
    if get_origin(kind) is list:
        return st.lists(inner[0], max_size=2)
    if get_origin(kind) is dict:
        return st.dictionaries(*inner, max_size=2)
    return st.one_of(*inner)


any_event: st.SearchStrategy[AnyEvent] = st.sampled_from(KINDS).flatmap(values)
