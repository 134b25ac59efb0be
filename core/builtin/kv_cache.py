"""The KV cache: every running sequence has one slot, as long as the model's context."""

from __future__ import annotations

import numpy as np

from core.builtin.batch import Batch
from core.builtin.weights import Floats, Shape


class KVCache:
    """Keys and values [layers, slots, kv_heads, length, head_dim]; memory is used when it is first
    written to."""

    def __init__(self, shape: Shape, slots: int, length: int) -> None:
        self.slots, self.length = slots, length
        dims = (shape.layers, slots, shape.kv_heads, length, shape.head_dim)
        # Zeros, not empty: attention multiplies what is past a sequence's end by 0, and 0 × NaN is
        # NaN.
        self.keys: Floats = np.zeros(dims, np.float32)
        self.values: Floats = np.zeros(dims, np.float32)

    def write(self, layer: int, batch: Batch, keys: Floats, values: Floats) -> None:
        """Store the batch's keys and values, both [n, kv_heads, head_dim]."""
        self.keys[layer][batch.slots, :, batch.positions] = keys
        self.values[layer][batch.slots, :, batch.positions] = values
