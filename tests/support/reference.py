"""Mixtral's forward pass written as plainly as possible: one token, one head, one expert at a time,
in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core.builtin.weights import Shape, Weights

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Reference:
    """The result of the pass for one sequence."""

    logits: npt.NDArray[np.float64]  # [tokens, vocab]
    chosen: list[list[list[int]]]  # [layers][tokens]: the experts, best first
    margin: float  # the smallest lead, in router logits, of a chosen expert over one that was not

    def counts(self, first: int, stop: int, experts: int) -> list[list[int]]:
        """How many of the tokens first to stop - 1 each expert of each layer got."""
        return [
            [sum(e in token for token in layer[first:stop]) for e in range(experts)]
            for layer in self.chosen
        ]


def forward(shape: Shape, weights: Weights, tokens: list[int]) -> Reference:
    """Run the whole sequence through all layers."""
    states = [weights.embedding[token].astype(np.float64) for token in tokens]
    chosen: list[list[list[int]]] = []
    margins: list[float] = []
    for layer in range(shape.layers):
        normed = [rms_norm(x, weights.attention_norm[layer], shape) for x in states]
        mixed = attention(shape, weights, layer, normed)
        states = [x + a for x, a in zip(states, mixed, strict=True)]
        chosen.append([])
        for i, x in enumerate(states):
            h = rms_norm(x, weights.expert_norm[layer], shape)
            router = h @ weights.router[layer].astype(np.float64)
            best = sorted(range(shape.experts), key=lambda e, r=router: -r[e])  # type: ignore[misc]
            chosen[layer].append(best[: shape.top_k])
            margins.append(float(router[best[shape.top_k - 1]] - router[best[shape.top_k]]))
            states[i] = x + experts(shape, weights, layer, h, router, best[: shape.top_k])
    last = [
        rms_norm(x, weights.final_norm, shape) @ weights.head.astype(np.float64) for x in states
    ]
    return Reference(np.array(last), chosen, min(margins))


def greedy(shape: Shape, weights: Weights, prompt: list[int], count: int) -> list[int]:
    """The prompt, followed by the `count` likeliest tokens."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(np.argmax(forward(shape, weights, tokens).logits[-1])))
    return tokens


def rms_norm(x: Vector, weight: npt.NDArray[np.float32], shape: Shape) -> Vector:
    """x [hidden]."""
    normed: Vector = (
        x / math.sqrt(float(x @ x) / len(x) + shape.norm_eps) * weight.astype(np.float64)
    )
    return normed


def attention(shape: Shape, weights: Weights, layer: int, states: list[Vector]) -> list[Vector]:
    """Every token attends to itself and those before it; query heads share key heads in groups."""
    width = shape.head_dim
    qkv = weights.qkv[layer].astype(np.float64)
    rows = [[(x @ qkv)[at : at + width] for at in range(0, qkv.shape[1], width)] for x in states]
    values_at = shape.heads + shape.kv_heads
    turned = [[rotated(part, i, shape) for part in row[:values_at]] for i, row in enumerate(rows)]
    out = []
    for i in range(len(states)):
        heads = []
        for head in range(shape.heads):
            shared = head // (shape.heads // shape.kv_heads)
            query, keys = turned[i][head], [turned[j][shape.heads + shared] for j in range(i + 1)]
            share = softmax(np.array([query @ key / math.sqrt(width) for key in keys]))
            heads.append(sum(share[j] * rows[j][values_at + shared] for j in range(i + 1)))
        out.append(np.concatenate(heads) @ weights.attention_out[layer].astype(np.float64))
    return out


def softmax(x: Vector) -> Vector:
    """x [n]."""
    powers = np.exp(x - x.max())
    share: Vector = powers / powers.sum()
    return share


def rotated(x: Vector, position: int, shape: Shape) -> Vector:
    """RoPE: the pair (i, i + half) turns by position · theta^(-2i / head_dim)."""
    half = len(x) // 2
    out = np.empty_like(x)
    for i in range(half):
        angle = position * shape.rope_theta ** (-2 * i / len(x))
        out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        out[i + half] = x[i] * math.sin(angle) + x[i + half] * math.cos(angle)
    return out


def experts(
    shape: Shape, weights: Weights, layer: int, h: Vector, router: Vector, best: list[int]
) -> Vector:
    """The softmax over all experts, renormalised over the best; each a SwiGLU network."""
    probabilities = softmax(router)
    kept = sum(probabilities[e] for e in best)
    out = np.zeros(shape.hidden)
    for e in best:
        gate_up = weights.gate_up[layer, e].astype(np.float64)
        gate, up = h @ gate_up[:, : shape.intermediate], h @ gate_up[:, shape.intermediate :]
        out += (
            probabilities[e]
            / kept
            * ((gate / (1 + np.exp(-gate)) * up) @ weights.down[layer, e].astype(np.float64))
        )
    return out
