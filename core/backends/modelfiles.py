"""A model's files on this machine: where they lie, and the shape that its config.json names."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from core.errors import ConfigError

CONFIGS = ("config.json", "params.json")  # the latter is Mistral's own format

# Names in a model's config, and families whose model code in vLLM 0.30 (model_executor/models),
# or whose configuration class in transformers 5.24, reads them.
EXPERTS = {
    "num_local_experts": "Mixtral, GPT-OSS, Granite MoE, Phi MoE, Llama 4, MiniMax",
    "num_experts": "Qwen MoE, OLMoE, Hunyuan, Jamba, Gemma 4, Bailing, AFMoE, LFM2, Mistral's moe",
    "n_routed_experts": "DeepSeek, GLM-4 MoE, Kimi K2, dots, MiMo, LongCat, Nemotron-H, openPangu",
    "moe_num_experts": "ERNIE 4.5, DBRX's ffn_config, Aria, Step 3",
    "n_experts": "Moondream 3's moe",
}
TOP_K = {
    "num_experts_per_tok": "most of them",
    "num_experts_per_token": "Kimi Linear, GLM-5, Bailing hybrid",
    "experts_per_token": "GPT-OSS's original",
    "moe_topk": "Hunyuan, Aria, LongCat",
    "moe_top_k": "DBRX's ffn_config, Step 3, Nomic",
    "moe_k": "ERNIE 4.5",
    "top_k_experts": "Gemma 4",
    "n_experts_per_tok": "Moondream 3's moe",
}
HIDDEN = {"hidden_size": "most of them", "dim": "Mistral's own format"}
INTER = {
    "moe_intermediate_size": "Qwen MoE, DeepSeek, GLM-4 MoE, ERNIE 4.5",
    "expert_ffn_hidden_size": "LongCat",
    "intermediate_size": "Mixtral, GPT-OSS, OLMoE, Llama 4",
    "hidden_dim": "Mistral's own format",
}
# Where the language model's own table lies in a config: multimodal models, then MoE tables.
NESTED = (
    "text_config",
    "language_config",
    "llm_config",
    "lm_config",
    "thinker_config",
    "moe",
    "ffn_config",
)


DENSE = (  # of models whose layers are not all MoE layers, as vLLM's model code reads them
    "first_k_dense_replace",
    "decoder_sparse_step",
    "mlp_only_layers",
    "moe_layer_freq",
    "interleave_moe_layer_step",
    "moe_layer_start_index",
    "moe_layers_enum",
    "expert_layer_period",
    "hybrid_override_pattern",
    "layer_types",
    "num_dense_layers",
)


def layers(model: str) -> int | None:
    """MoE layers of a model on this machine; None where its config does not say, or names dense
    layers among them."""
    for file in _configs(model, {}):
        try:
            about = json.loads(file.read_text())
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(about, dict) and not any(about.get(name) for name in DENSE):
            return _count(about.get("num_hidden_layers")) or None
    return None


def moe_shape(model: str, env: Mapping[str, str] | None = None) -> tuple[int, int] | None:
    """Experts per layer and per token, from the config of a model on this machine; `env` is added
    to our environment. None where there is none, or it does not name both."""
    for file in _configs(model, env or {}):
        try:
            about = json.loads(file.read_text())
        except (OSError, ValueError, RecursionError):
            continue
        if shape := _shape(about):
            return shape
    return None


def expert_widths(model: str, env: Mapping[str, str] | None = None) -> tuple[int, int] | None:
    """Hidden size and the intermediate size of one expert, as `moe_shape`."""
    for file in _configs(model, env or {}):
        try:
            about = json.loads(file.read_text())
        except (OSError, ValueError, RecursionError):
            continue
        if widths := _widths(about):
            return widths
    return None


def is_here(model: str, env: Mapping[str, str] | None = None) -> bool:
    """Whether any config of the model is on this machine."""
    return any(file.is_file() for file in _configs(model, env or {}))


def hub_cache(env: Mapping[str, str] | None = None) -> Path:
    """The hub's cache folder, as huggingface_hub finds it. Without a home directory it is relative,
    as there."""
    seen = {**os.environ, **(env or {})}
    home = seen.get("XDG_CACHE_HOME") or os.path.join(seen.get("HOME") or "~", ".cache")
    root = seen.get("HF_HOME") or os.path.join(home, "huggingface")
    named = seen.get("HF_HUB_CACHE") or seen.get("HUGGINGFACE_HUB_CACHE")
    return Path(os.path.expandvars(os.path.expanduser(named or os.path.join(root, "hub"))))


def cached(model: str, env: Mapping[str, str] | None = None) -> Path:
    """Where the hub's cache keeps a model, whether or not it does."""
    return hub_cache(env) / f"models--{model.replace('/', '--')}"


def check(model: str) -> None:
    """ConfigError for a path at which nothing is. Hub names pass."""
    if model.startswith(("/", "~")) and not os.path.exists(model):
        raise ConfigError(
            f"[model] id: there is no folder {model}; name a folder with config.json, or a model at"
            " the hub"
        )


def _configs(model: str, env: Mapping[str, str]) -> Iterator[Path]:
    for name in CONFIGS:
        yield Path(model) / name
        yield from sorted(cached(model, env).glob(f"snapshots/*/{name}"))


def _shape(about: Any) -> tuple[int, int] | None:
    if not isinstance(about, dict):
        return None
    inner = (_shape(about.get(name)) for name in NESTED)
    if found := next(filter(None, inner), None):
        return found
    experts = next(filter(None, (_count(about.get(name)) for name in EXPERTS)), 0)
    top_k = next(filter(None, (_count(about.get(name)) for name in TOP_K)), 0)
    return (experts, top_k) if 0 < top_k <= experts and experts > 1 else None


def _widths(about: Any) -> tuple[int, int] | None:
    if not isinstance(about, dict):
        return None
    inner = (_widths(about.get(name)) for name in NESTED)
    if found := next(filter(None, inner), None):
        return found
    hidden = next(filter(None, (_count(about.get(name)) for name in HIDDEN)), 0)
    inter = next(filter(None, (_count(about.get(name)) for name in INTER)), 0)
    return (hidden, inter) if hidden and inter else None


def _count(value: Any) -> int:
    """A number, a text that is one, or a list of one number for each layer; 0 for anything else, as
    for layers that differ."""
    if isinstance(value, list):
        numbers = {_count(item) for item in value}
        return numbers.pop() if len(numbers) == 1 else 0
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return 0
    try:
        number = float(value)
    except ValueError:
        return 0
    return int(number) if number.is_integer() and number > 0 else 0
