"""The built-in engine's model as a stack: its own NumPy code, without torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from core.builtin import checkpoint, tokenizer
from core.builtin.batch import Batch, Span
from core.builtin.kv_cache import KVCache
from core.builtin.model import Model, rms_norm, route
from core.builtin.parallel import Layout, Ranks, Split
from core.builtin.weights import Floats as Hidden
from core.builtin.weights import Shape
from core.prediction.stack import Picks
from core.stats.arrays import Floats

FLOAT = 4


class BuiltinStack:
    """The trained model that comes with gatescope."""

    name = "gatescope-tiny-mixtral"

    def __init__(self) -> None:
        self._shape = s = Shape()
        self._weights = checkpoint.read(checkpoint.FOLDER, s)
        self.depth, self.experts, self.top_k = s.layers, s.experts, s.top_k
        w = self._weights
        matrices = (w.qkv, w.attention_out, w.router, w.gate_up, w.down)
        self.layer_bytes = sum(matrix[0].nbytes for matrix in matrices)
        self.peak_bytes = self.layer_bytes * s.layers  # it is small: all layers stay in memory
        self.token_bytes = s.hidden * FLOAT
        self._model: Model | None = None
        self._batches: list[Batch] = []

    def tokens(self, text: str) -> list[int]:
        """BOS and the bytes."""
        return tokenizer.encode(text)

    def embed(self, prompts: Sequence[Sequence[int]]) -> list[Hidden]:
        """[tokens, hidden] of each prompt."""
        longest = max(map(len, prompts))
        ranks = Ranks(self._shape, self._weights, Layout(Split.TENSOR, 1), longest)  # no process
        self._model = Model(self._shape, self._weights, KVCache(self._shape, 1, longest), ranks)
        self._batches = [Batch.of([Span(0, 0, prompt, False)]) for prompt in prompts]
        return [self._weights.embedding[list(prompt)] for prompt in prompts]

    def through(self, layer: int, hidden: list[Hidden]) -> list[Picks]:
        """As `Stack.through`."""
        assert self._model is not None  # embed came first
        pairs = zip(hidden, self._batches, strict=True)
        return [self._model.layer(layer, x, batch).astype(np.int16) for x, batch in pairs]

    def gate_table(self) -> Floats:
        """As `Stack.gate_table`."""
        w, s = self._weights, self._shape
        h = rms_norm(w.embedding, w.expert_norm[0], s.norm_eps)
        chosen, _ = route(h @ w.router[0], s.top_k)
        table = np.zeros((s.vocab, s.experts))
        np.put_along_axis(table, chosen, 1.0, axis=1)
        return table
