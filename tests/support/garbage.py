"""Hypothesis strategies for malformed input: JSON of any shape, and bytes close to a format."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

texts = st.text(max_size=12)  # lone surrogates too: JSON may escape them
numbers = st.integers() | st.floats() | st.sampled_from([0, -1, 2**63, 10**30, 1e308, -0.0])
scalars = st.none() | st.booleans() | numbers | texts


def json_like(*keys: str) -> st.SearchStrategy[Any]:
    """Any JSON value; its objects often have these keys."""
    names = st.sampled_from(keys) | texts if keys else texts
    return st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
        max_leaves=8,
    )


def near(*pieces: bytes) -> st.SearchStrategy[bytes]:
    """Bytes made of these pieces in any order, with other bytes between them."""
    return st.lists(st.sampled_from(pieces) | st.binary(max_size=6), max_size=14).map(b"".join)


def spoilt(good: bytes, *pieces: bytes) -> st.SearchStrategy[bytes]:
    """`good` with one to three stretches of it replaced by a piece or by other bytes."""

    @st.composite
    def drawn(draw: st.DrawFn) -> bytes:
        made = good
        for _ in range(draw(st.integers(1, 3))):
            place = draw(st.integers(0, len(made)))
            end = place + draw(st.integers(0, 9))
            made = made[:place] + draw(st.sampled_from(pieces) | st.binary(max_size=4)) + made[end:]
        return made

    return drawn()


def nested(depth: int = 100_000) -> list[bytes]:
    """JSON nested deeper than any parser follows."""
    return [b"[" * depth, b'{"a":' * depth]


def mutated(document: Any, *keys: str) -> st.SearchStrategy[Any]:
    """A good document in which one to three values, anywhere in it, are missing or any JSON."""
    places = list(_places(document))

    @st.composite
    def drawn(draw: st.DrawFn) -> Any:
        made = copy.deepcopy(document)
        for place in draw(st.lists(st.sampled_from(places), min_size=1, max_size=3)):
            _change(made, place, draw(st.just(MISSING) | json_like(*keys)))
        return made

    return drawn()


MISSING = object()


def _places(of: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a document."""
    inner = of.items() if isinstance(of, dict) else enumerate(of) if isinstance(of, list) else ()
    for key, value in inner:
        yield (*before, key)
        yield from _places(value, (*before, key))


def _change(document: Any, place: tuple[Any, ...], value: Any) -> None:
    """Nothing where an earlier change took the place away."""
    try:
        for key in place[:-1]:
            document = document[key]
        if value is MISSING:
            del document[place[-1]]
        else:
            document[place[-1]] = value
    except (KeyError, IndexError, TypeError):
        return
