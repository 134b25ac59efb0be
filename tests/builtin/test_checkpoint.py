"""The trained checkpoint that comes with gatescope: what is in it, what a damaged one says, and
which weights a server has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.reference import greedy
from support.running import server

from core.builtin import checkpoint
from core.builtin.checkpoint import FOLDER
from core.builtin.tokenizer import BOS, EOS, PIECES, encode
from core.builtin.weights import Shape, Weights

MOE = "model.layers.2.block_sparse_moe"


def test_its_config_names_the_sizes_that_are_served() -> None:
    config, s = json.loads((FOLDER / "config.json").read_text()), Shape()
    sizes = "hidden_size num_attention_heads num_key_value_heads head_dim intermediate_size"
    assert [config[key] for key in sizes.split()] == [128, 4, 2, 32, 288]
    assert (s.hidden, s.heads, s.kv_heads, s.head_dim, s.intermediate) == (128, 4, 2, 32, 288)
    others = "num_hidden_layers num_local_experts num_experts_per_tok vocab_size"
    assert [config[key] for key in others.split()] == [4, 8, 2, 258]
    assert (s.layers, s.experts, s.top_k, s.vocab) == (4, 8, 2, 258)
    assert (config["rope_theta"], config["rms_norm_eps"]) == (s.rope_theta, s.norm_eps)
    assert (config["bos_token_id"], config["eos_token_id"]) == (BOS, EOS)


def test_every_matrix_is_turned_from_out_in_to_in_out() -> None:
    """One number of each kind, looked up in the file by hand."""
    file, weights = load_file(FOLDER / "model.safetensors"), checkpoint.read(FOLDER, Shape())
    pairs = [
        (weights.embedding[65, 3], "model.embed_tokens", (65, 3)),
        (weights.head[3, 65], "lm_head", (65, 3)),
        (weights.final_norm[7], "model.norm", (7,)),
        (weights.attention_norm[2, 7], "model.layers.2.input_layernorm", (7,)),
        (weights.expert_norm[2, 7], "model.layers.2.post_attention_layernorm", (7,)),
        (weights.qkv[2, 5, 127], "model.layers.2.self_attn.q_proj", (127, 5)),
        (weights.qkv[2, 5, 128], "model.layers.2.self_attn.k_proj", (0, 5)),
        (weights.qkv[2, 5, 255], "model.layers.2.self_attn.v_proj", (63, 5)),
        (weights.attention_out[2, 5, 9], "model.layers.2.self_attn.o_proj", (9, 5)),
        (weights.router[2, 5, 6], f"{MOE}.gate", (6, 5)),
        (weights.gate_up[2, 6, 5, 287], f"{MOE}.experts.6.w1", (287, 5)),
        (weights.gate_up[2, 6, 5, 288], f"{MOE}.experts.6.w3", (0, 5)),
        (weights.down[2, 6, 9, 5], f"{MOE}.experts.6.w2", (5, 9)),
    ]
    assert [float(ours) for ours, _, _ in pairs] == [
        float(file[f"{name}.weight"][place]) for _, name, place in pairs
    ]
    arrays = [getattr(weights, name) for name in Weights.__dataclass_fields__]
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}
    assert all(array.flags.c_contiguous for array in arrays)
    assert sum(array.size for array in arrays) == 3_806_848


def test_a_checkpoint_that_is_missing_damaged_or_of_other_sizes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"model\.safetensors"):
        checkpoint.read(tmp_path, Shape())
    with pytest.raises(ValueError, match=r"gate is \[128, 8\], expected \[128, 4\].*install"):
        checkpoint.read(FOLDER, Shape(experts=4))
    with pytest.raises(ValueError, match=r"model\.layers\.4\.self_attn.*install gatescope"):
        checkpoint.read(FOLDER, Shape(layers=5))
    shutil.copy(FOLDER / "model.safetensors", tmp_path)
    with open(tmp_path / "model.safetensors", "r+b") as file:
        file.truncate(1 << 20)
    with pytest.raises(ValueError, match="not the weights of the built-in model"):
        checkpoint.read(tmp_path, Shape())


@pytest.mark.parametrize("options", [(), ("--seed", 3), ("--weights", "random", "--seed", 3)])
def test_a_server_has_the_trained_weights_unless_random_ones_are_asked_for(
    options: tuple[object, ...],
) -> None:
    random = "random" in options
    weights = Weights.seeded(Shape(), 3) if random else checkpoint.read(FOLDER, Shape())
    tokens = greedy(Shape(), weights, encode("The "), 5)
    with server(*options) as running:
        about = running.client.get("/version").json()
        answer = running.post(prompt="The ", max_tokens=5, temperature=0, ignore_eos=True).json()
    assert answer["choices"][0]["text"] == "".join(PIECES[token] for token in tokens[-5:])
    assert about["weights"] == ("random" if random else "trained")
