"""Grouped-query attention over cached keys and values, for decodes and for prefills."""

from __future__ import annotations

import numpy as np

from core.builtin.weights import Floats

QUERY_BLOCK = 64
"""Queries per block. A block skips the keys after its last query, and its scores fit in the CPU's
cache."""


def attend_decodes(q: Floats, keys: Floats, values: Floats, bias: Floats) -> Floats:
    """Attention of one query per sequence.

    q [n, kv_heads, group, head_dim], keys and values [n, kv_heads, length, head_dim] → like q.
    """
    scores: Floats = np.matmul(q * _scale(q), keys.swapaxes(-1, -2))
    scores += bias
    return _weighted(scores, values)


def attend_prefill(q: Floats, keys: Floats, values: Floats) -> Floats:
    """Causal attention of one sequence's last n tokens.

    q [n, kv_heads, group, head_dim], keys and values [kv_heads, length, head_dim] → like q.
    """
    out = np.empty_like(q)
    cached = keys.shape[1] - len(q)
    for first in range(0, len(q), QUERY_BLOCK):
        block = q[first : first + QUERY_BLOCK]
        length = cached + first + len(block)
        out[first : first + len(block)] = _causal(block, keys[:, :length], values[:, :length])
    return out


def _causal(q: Floats, keys: Floats, values: Floats) -> Floats:
    n, kv_heads, group, head_dim = q.shape
    rows = (q * _scale(q)).transpose(1, 2, 0, 3).reshape(kv_heads, group * n, head_dim)
    scores: Floats = np.matmul(rows, keys.swapaxes(-1, -2))
    future = np.where(np.tri(n, dtype=bool), np.float32(0), np.float32(-np.inf))
    scores.reshape(kv_heads, group, n, -1)[..., -n:] += future
    return _weighted(scores, values).reshape(kv_heads, group, n, head_dim).transpose(2, 0, 1, 3)


def _weighted(scores: Floats, values: Floats) -> Floats:
    """softmax(scores) @ values, divided at the end, when there is less to divide. Overwrites
    `scores`."""
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    out: Floats = scores @ values
    out /= scores.sum(axis=-1, keepdims=True)
    return out


def _scale(q: Floats) -> np.float32:
    return np.float32(q.shape[-1] ** -0.5)
