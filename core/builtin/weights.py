"""The model's sizes, its weights, and random ones; `checkpoint.py` reads the trained ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Shape:
    """The model's sizes; those of the trained checkpoint."""

    layers: int = 4
    hidden: int = 128
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    intermediate: int = 288
    experts: int = 8
    top_k: int = 2
    vocab: int = 258  # 256 bytes, BOS, EOS
    rope_theta: float = 1e6
    norm_eps: float = 1e-5


@dataclass(frozen=True, slots=True)
class Weights:
    """All float32; matrices are [in, out]. q, k and v are one matrix, gate and up another."""

    embedding: Floats  # [vocab, hidden]
    attention_norm: Floats  # [layers, hidden]
    qkv: Floats  # [layers, hidden, (heads + 2 kv_heads) head_dim]
    attention_out: Floats  # [layers, heads head_dim, hidden]
    expert_norm: Floats  # [layers, hidden]
    router: Floats  # [layers, hidden, experts]
    gate_up: Floats  # [layers, experts, hidden, 2 intermediate]
    down: Floats  # [layers, experts, intermediate, hidden]
    final_norm: Floats  # [hidden]
    head: Floats  # [hidden, vocab]

    @classmethod
    def seeded(cls, shape: Shape, seed: int) -> Weights:
        """Random weights; the same seed gives the same model whatever the parallel layout."""
        draw = np.random.default_rng(seed)

        def normal(*dims: int, gain: float = 1.0) -> Floats:
            """Variance gain²/fan-in, so that activations keep their size."""
            return draw.standard_normal(dims, dtype=np.float32) * np.float32(gain / dims[-2] ** 0.5)

        def ones(*dims: int) -> Floats:
            return np.ones(dims, np.float32)

        s = shape
        return cls(
            embedding=draw.standard_normal((s.vocab, s.hidden), dtype=np.float32),
            attention_norm=ones(s.layers, s.hidden),
            qkv=normal(s.layers, s.hidden, (s.heads + 2 * s.kv_heads) * s.head_dim),
            attention_out=normal(s.layers, s.heads * s.head_dim, s.hidden),
            expert_norm=ones(s.layers, s.hidden),
            router=normal(s.layers, s.hidden, s.experts, gain=1.5),
            gate_up=normal(s.layers, s.experts, s.hidden, 2 * s.intermediate),
            down=normal(s.layers, s.experts, s.intermediate, s.hidden),
            final_norm=ones(s.hidden),
            head=normal(s.hidden, s.vocab),
        )
