"""Hypothesis strategies for malformed input: JSON of any shape, and bytes close to a format."""

from __future__ import annotations

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


def nested(depth: int = 100_000) -> list[bytes]:
    """JSON nested deeper than any parser follows."""
    return [b"[" * depth, b'{"a":' * depth]
