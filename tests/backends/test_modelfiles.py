"""A model on this machine: its folder, the hub's cache, and the shape that its config names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core.backends import modelfiles
from core.errors import ConfigError

ENVIRONMENT = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME")

FAMILIES: dict[str, tuple[Any, tuple[int, int] | None]] = {
    "Mixtral": ({"num_local_experts": 8, "num_experts_per_tok": 2}, (8, 2)),
    "Qwen3": ({"num_experts": 128, "num_experts_per_tok": 8}, (128, 8)),
    "Qwen3-VL": ({"text_config": {"num_experts": 128, "num_experts_per_tok": 8}}, (128, 8)),
    "Qwen3-Omni": (
        {"thinker_config": {"text_config": {"num_experts": 128, "num_experts_per_tok": 8}}},
        (128, 8),
    ),
    "DeepSeek-V3": (
        {"n_routed_experts": 256, "num_experts_per_tok": 8, "n_shared_experts": 1},
        (256, 8),
    ),
    "DeepSeek-VL2": (
        {"language_config": {"n_routed_experts": 64, "num_experts_per_tok": 6}},
        (64, 6),
    ),
    "GPT-OSS": ({"num_experts": 128, "experts_per_token": 4}, (128, 4)),
    "GPT-OSS, both names": (
        {"num_local_experts": 32, "num_experts_per_tok": 4, "experts_per_token": 4},
        (32, 4),
    ),
    "Llama 4": ({"text_config": {"num_local_experts": 16, "num_experts_per_tok": 1}}, (16, 1)),
    "Hunyuan Large": ({"num_experts": 16, "moe_topk": 1}, (16, 1)),
    "Hunyuan": ({"num_experts": 64, "moe_topk": [8] * 32}, (64, 8)),
    "ERNIE 4.5": ({"moe_num_experts": 64, "moe_k": 6}, (64, 6)),
    "ERNIE 4.5 VL": ({"moe_num_experts": [64, 64], "moe_k": 6}, (64, 6)),
    "DBRX": ({"ffn_config": {"moe_num_experts": 16, "moe_top_k": 4}}, (16, 4)),
    "Aria": ({"text_config": {"moe_num_experts": 64, "moe_topk": 6}}, (64, 6)),
    "Step 3": ({"text_config": {"moe_num_experts": 48, "moe_top_k": 3}}, (48, 3)),
    "LongCat": ({"n_routed_experts": 512, "moe_topk": 12, "zero_expert_num": 256}, (512, 12)),
    "Kimi Linear": ({"num_experts": 256, "num_experts_per_token": 8}, (256, 8)),
    "Gemma 4": ({"text_config": {"num_experts": 128, "top_k_experts": 8}}, (128, 8)),
    "Moondream 3": ({"text_config": {"moe": {"n_experts": 64, "n_experts_per_tok": 8}}}, (64, 8)),
    "Mistral": ({"text_config": {}, "moe": {"num_experts": 8, "num_experts_per_tok": 2}}, (8, 2)),
    "null beside it": (
        {"num_experts": None, "n_routed_experts": 64, "num_experts_per_tok": 6},
        (64, 6),
    ),
    "texts": ({"num_experts": "64", "num_experts_per_tok": "8"}, (64, 8)),
    "layers that differ": ({"num_experts": [64, 32], "num_experts_per_tok": 8}, None),
    "dense": ({"hidden_size": 8}, None),
    "dense, in a family of MoE": ({"num_experts": 0, "num_experts_per_tok": 8}, None),
    "nothing that is a number": ({"num_experts": "many", "num_experts_per_tok": True}, None),
    "an array": ([], None),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_and_top_k_of(tmp_path: Path, family: str) -> None:
    config, shape = FAMILIES[family]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert modelfiles.moe_shape(str(tmp_path)) == shape
    assert modelfiles.is_here(str(tmp_path))


def test_mistrals_own_format(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text('{"moe": {"num_experts": 8, "num_experts_per_tok": 2}}')
    assert modelfiles.moe_shape(str(tmp_path)) == (8, 2)


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"HF_HUB_CACHE": "{}/a"}, "a"),
        ({"HUGGINGFACE_HUB_CACHE": "{}/a"}, "a"),
        ({"HF_HUB_CACHE": "{}/a", "HF_HOME": "{}/b"}, "a"),
        ({"HF_HOME": "{}/b"}, "b/hub"),
        ({"HOME": "{}", "HF_HOME": "~/b"}, "b/hub"),
        ({"XDG_CACHE_HOME": "{}/c"}, "c/huggingface/hub"),
        ({"HOME": "{}"}, ".cache/huggingface/hub"),
    ],
)
def test_the_hubs_cache_is_where_the_hub_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], folder: str
) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    assert modelfiles.hub_cache() == tmp_path / folder
    snapshot = tmp_path / folder / "models--acme--moe/snapshots/1"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text('{"num_experts": 64, "num_experts_per_tok": 8}')
    assert modelfiles.moe_shape("acme/moe") == (64, 8)


def test_a_backends_own_environment_counts(tmp_path: Path) -> None:
    assert modelfiles.hub_cache({"HF_HUB_CACHE": str(tmp_path)}) == tmp_path


def test_a_path_at_which_nothing_is(tmp_path: Path) -> None:
    modelfiles.check("acme/moe")
    modelfiles.check(str(tmp_path))
    for path in (str(tmp_path / "missing"), "~/models/tiny"):
        with pytest.raises(ConfigError, match=f"there is no folder {path}; name a folder with"):
            modelfiles.check(path)
