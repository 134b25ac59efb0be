"""The model: Mixtral's architecture at toy size; a forward pass takes a ragged batch.

As in Mixtral: RMSNorm, grouped-query attention with RoPE (Hugging Face's rotate-half layout), a
router that takes the softmax over all experts and renormalises the top k, SwiGLU experts.
`parallel.py` computes the experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from core.builtin.attention import attend_decodes, attend_prefill
from core.builtin.batch import Batch
from core.builtin.kv_cache import KVCache
from core.builtin.weights import Floats, Ints, Shape, Weights


class Experts(Protocol):
    """Computes the chosen experts of one layer."""

    def __call__(self, layer: int, x: Floats, chosen: Ints, mix: Floats) -> Floats:
        """x [n, hidden], chosen and mix [n, top_k] → Σ_k mix · expert(x) [n, hidden]."""


@dataclass(frozen=True, slots=True)
class Output:
    """The result of one forward pass."""

    logits: Floats  # [spans that want logits, vocab], in the order of the spans
    counts: Ints  # [layers, experts]: tokens of each expert


class Model:
    """The weights with a KV cache and a way to compute the experts."""

    def __init__(self, shape: Shape, weights: Weights, cache: KVCache, experts: Experts) -> None:
        self.shape, self.weights, self.cache, self.experts = shape, weights, cache, experts
        self._cos, self._sin = rope_tables(shape, cache.length)

    def forward(self, batch: Batch, forced: Ints | None = None) -> Output:
        """Run every token of the batch through all layers; store its keys and values in the cache.

        `forced` [layers, n, top_k]: distinct experts that replace the router's choice; its weights
        stay.
        """
        w, s = self.weights, self.shape
        x = w.embedding[batch.tokens]
        counts = np.empty((s.layers, s.experts), np.int64)
        for layer in range(s.layers):
            chosen = self.layer(layer, x, batch, None if forced is None else forced[layer])
            counts[layer] = np.bincount(chosen.ravel(), minlength=s.experts)
        return Output(rms_norm(x[batch.last], w.final_norm, s.norm_eps) @ w.head, counts)

    def layer(self, layer: int, x: Floats, batch: Batch, forced: Ints | None = None) -> Ints:
        """Take x [n, hidden] through one layer, in place; the experts of each token [n, top_k]."""
        w, s = self.weights, self.shape
        h = rms_norm(x, w.attention_norm[layer], s.norm_eps)
        x += self._attention(layer, h, batch) @ w.attention_out[layer]
        h = rms_norm(x, w.expert_norm[layer], s.norm_eps)
        chosen, mix = route(h @ w.router[layer], s.top_k)
        if forced is not None:
            chosen = forced
        x += self.experts(layer, h, chosen, mix)
        return chosen

    def _attention(self, layer: int, h: Floats, batch: Batch) -> Floats:
        """h [n, hidden] → [n, heads head_dim]."""
        s = self.shape
        qkv = (h @ self.weights.qkv[layer]).reshape(len(h), -1, s.head_dim)
        rotary = s.heads + s.kv_heads  # q and k are rotated, v is not
        rotated = rotate(qkv[:, :rotary], self._cos[batch.positions], self._sin[batch.positions])
        q = rotated[:, : s.heads].reshape(len(h), s.kv_heads, -1, s.head_dim)
        self.cache.write(layer, batch, rotated[:, s.heads :], qkv[:, rotary:])
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        out = np.empty_like(q)
        for run in batch.decodes:
            out[run.rows] = attend_decodes(
                q[run.rows],
                keys[run.slots, :, : run.length],
                values[run.slots, :, : run.length],
                run.bias,
            )
        for span in batch.prefills:
            stop = span.start + span.stop_row - span.row
            rows = slice(span.row, span.stop_row)
            out[rows] = attend_prefill(
                q[rows], keys[span.slot, :, :stop], values[span.slot, :, :stop]
            )
        return out.reshape(len(h), -1)


def rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    """x [n, hidden], each row divided by its root mean square."""
    square = np.einsum("nh,nh->n", x, x) / np.float32(x.shape[1])
    normed: Floats = x * (1 / np.sqrt(square + np.float32(eps)))[:, None] * weight
    return normed


def route(logits: Floats, top_k: int) -> tuple[Ints, Floats]:
    """Router logits [n, experts] → chosen experts and their weights, both [n, top_k]; weights sum
    to 1."""
    chosen = np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
    picked = np.take_along_axis(logits, chosen, axis=1)
    # The softmax over all experts, renormalised over the chosen ones: the others cancel out.
    mix = np.exp(picked - picked[:, :1])
    return chosen, mix / mix.sum(axis=1, keepdims=True)


def rope_tables(shape: Shape, length: int) -> tuple[Floats, Floats]:
    """Cosines and sines [length, 1, head_dim / 2] of each position's angles."""
    exponents = np.arange(0, shape.head_dim, 2) / shape.head_dim
    angles = np.outer(np.arange(length), shape.rope_theta**-exponents)[:, None, :]
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(x: Floats, cos: Floats, sin: Floats) -> Floats:
    """RoPE of x [n, heads, head_dim]: dimension i is rotated with i + head_dim / 2."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
