"""The trained weights: an ordinary Mixtral checkpoint, as Hugging Face's libraries write it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from core.builtin.weights import Floats, Shape, Weights

FOLDER = Path(__file__).parent / "tiny_mixtral"
"""The checkpoint that comes with gatescope; docs/model.md has its sources and licence."""


def read(folder: Path, shape: Shape) -> Weights:
    """The weights in `folder`, in float32. OSError or ValueError if they cannot be read, or are not
    of this shape."""
    file = folder / "model.safetensors"
    try:
        return _weights({name: half.T for name, half in load_file(file).items()}, shape)
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"{file}: not the weights of the built-in model ({error}); install gatescope again"
        ) from None


def _weights(matrices: dict[str, Floats], s: Shape) -> Weights:
    """`matrices` by Hugging Face's names, but [in, out]. KeyError or ValueError if one is missing
    or has another size."""

    def of(name: str, *size: int) -> Floats:
        matrix = matrices[f"{name}.weight"]
        if matrix.shape != size:
            raise ValueError(f"{name} is {list(matrix.shape)}, expected {list(size)}")
        return matrix

    def every_layer(name: str, *size: int) -> Floats:
        layers = [of(f"model.layers.{layer}.{name}", *size) for layer in range(s.layers)]
        return np.array(layers, np.float32)  # contiguous, which np.stack's would not be

    def every_expert(name: str, *size: int) -> Floats:
        moe = "block_sparse_moe.experts"
        experts = [every_layer(f"{moe}.{e}.{name}", *size) for e in range(s.experts)]
        return np.stack(experts, axis=1)

    queries, keys = s.heads * s.head_dim, s.kv_heads * s.head_dim
    projections = [("q_proj", queries), ("k_proj", keys), ("v_proj", keys)]
    qkv = [every_layer(f"self_attn.{name}", s.hidden, size) for name, size in projections]
    gate_up = [every_expert(name, s.hidden, s.intermediate) for name in ("w1", "w3")]
    return Weights(
        embedding=_whole(of("model.embed_tokens", s.hidden, s.vocab).T),
        attention_norm=every_layer("input_layernorm", s.hidden),
        qkv=np.concatenate(qkv, axis=-1),
        attention_out=every_layer("self_attn.o_proj", queries, s.hidden),
        expert_norm=every_layer("post_attention_layernorm", s.hidden),
        router=every_layer("block_sparse_moe.gate", s.hidden, s.experts),
        gate_up=np.concatenate(gate_up, axis=-1),
        down=every_expert("w2", s.intermediate, s.hidden),
        final_norm=_whole(of("model.norm", s.hidden)),
        head=_whole(of("lm_head", s.hidden, s.vocab)),
    )


def _whole(matrix: Floats) -> Floats:
    """In float32 and contiguous."""
    return np.ascontiguousarray(matrix, np.float32)
