"""The logits of transformers' MixtralForCausalLM on given weights.

    python transformers_mixtral.py GIVEN.npz FOLDER LOGITS.npy

It loads the checkpoint in FOLDER, and saves the logits [tokens, vocab] of the prompt in GIVEN.npz.
Weights in GIVEN.npz are written to FOLDER first, as an ordinary Mixtral checkpoint. It runs under
an interpreter that has torch and transformers, and imports nothing of gatescope, which that
environment need not have.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import MixtralConfig, MixtralForCausalLM


def main(data: Path, folder: Path, logits: Path) -> None:
    """Write the checkpoint if its weights are given, load it, run it."""
    given = np.load(data)
    if "shape" in given:
        write_checkpoint(given, json.loads(str(given["shape"])), folder)
    model = MixtralForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        out = model(torch.tensor(given["tokens"])[None]).logits[0]
    np.save(logits, out.numpy())


def write_checkpoint(given: Any, shape: dict[str, Any], folder: Path) -> None:
    """The names and the [out, in] matrices of a published Mixtral."""
    config = MixtralConfig(
        vocab_size=shape["vocab"],
        hidden_size=shape["hidden"],
        intermediate_size=shape["intermediate"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        head_dim=shape["head_dim"],
        num_local_experts=shape["experts"],
        num_experts_per_tok=shape["top_k"],
        rms_norm_eps=shape["norm_eps"],
        rope_theta=shape["rope_theta"],
        tie_word_embeddings=False,
        architectures=["MixtralForCausalLM"],
    )
    config.save_pretrained(folder)
    tensors = {
        "model.embed_tokens.weight": given["embedding"],
        "model.norm.weight": given["final_norm"],
        "lm_head.weight": given["head"].T,
    }
    for layer in range(shape["layers"]):
        tensors |= {
            f"model.layers.{layer}.{name}": array
            for name, array in layer_tensors(given, shape, layer)
        }
    whole = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in tensors.items()}
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})


def layer_tensors(given: Any, shape: dict[str, Any], layer: int) -> list[tuple[str, Any]]:
    """The tensors of one layer, cut from the fused matrices."""
    queries, keys = shape["heads"] * shape["head_dim"], shape["kv_heads"] * shape["head_dim"]
    q, k, v = np.split(given["qkv"][layer], [queries, queries + keys], axis=1)
    tensors = [
        ("input_layernorm.weight", given["attention_norm"][layer]),
        ("post_attention_layernorm.weight", given["expert_norm"][layer]),
        ("self_attn.q_proj.weight", q.T),
        ("self_attn.k_proj.weight", k.T),
        ("self_attn.v_proj.weight", v.T),
        ("self_attn.o_proj.weight", given["attention_out"][layer].T),
        ("block_sparse_moe.gate.weight", given["router"][layer].T),
    ]
    for expert in range(shape["experts"]):
        gate, up = np.split(given["gate_up"][layer, expert], 2, axis=1)
        name = f"block_sparse_moe.experts.{expert}"
        tensors += [(f"{name}.w1.weight", gate.T), (f"{name}.w3.weight", up.T)]
        tensors += [(f"{name}.w2.weight", given["down"][layer, expert].T)]
    return tensors


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
