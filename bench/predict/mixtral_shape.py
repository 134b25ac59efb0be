"""Memory and time per token of `exact` on layers of Mixtral-8x7B's shape, with random weights.

    python bench/predict/mixtral_shape.py FOLDER [--layers 1] [--prompts 30] [--dtype bfloat16]

Runs in an environment with torch and transformers. Writes a checkpoint (2.9 GB a layer) to FOLDER,
a layer at a time, and streams it. Random weights route by chance: the routing means nothing here.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import torch
import transformers
from safetensors.torch import save_file

from core.builtin import checkpoint
from core.prediction import exact
from core.prediction.transformers_stack import TransformersStack

HIDDEN, INTERMEDIATE, EXPERTS, KV = 4096, 14336, 8, 1024
VOCABULARY = 32000
GIB = 1 << 30


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.bfloat16) * 0.02


def layer(number: int) -> dict[str, torch.Tensor]:
    at = f"model.layers.{number}"
    moe = f"{at}.block_sparse_moe"
    found = {
        f"{at}.self_attn.q_proj.weight": drawn(HIDDEN, HIDDEN),
        f"{at}.self_attn.k_proj.weight": drawn(KV, HIDDEN),
        f"{at}.self_attn.v_proj.weight": drawn(KV, HIDDEN),
        f"{at}.self_attn.o_proj.weight": drawn(HIDDEN, HIDDEN),
        f"{at}.input_layernorm.weight": torch.ones(HIDDEN, dtype=torch.bfloat16),
        f"{at}.post_attention_layernorm.weight": torch.ones(HIDDEN, dtype=torch.bfloat16),
        f"{moe}.gate.weight": drawn(EXPERTS, HIDDEN),
    }
    for expert in range(EXPERTS):
        for name, shape in (("w1", (INTERMEDIATE, HIDDEN)), ("w3", (INTERMEDIATE, HIDDEN))):
            found[f"{moe}.experts.{expert}.{name}.weight"] = drawn(*shape)
        found[f"{moe}.experts.{expert}.w2.weight"] = drawn(HIDDEN, INTERMEDIATE)
    return found


def write(folder: Path, layers: int) -> None:
    folder.mkdir(parents=True)
    config: Any = transformers.MixtralConfig(num_hidden_layers=layers, dtype="bfloat16")
    config.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((checkpoint.FOLDER / name).read_bytes())
    outer = {"model.embed_tokens.weight": drawn(VOCABULARY, HIDDEN)}
    parts = {"outer": outer} | {f"layer-{n}": None for n in range(layers)}
    index: dict[str, str] = {}
    for number, (name, tensors) in enumerate(parts.items(), -1):
        made = tensors or layer(number)
        save_file(made, folder / f"{name}.safetensors")
        index |= dict.fromkeys(made, f"{name}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def peak_gib() -> float:
    """Resident memory at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=30)
    parser.add_argument("--dtype", default="auto")
    arguments = parser.parse_args()
    if not arguments.folder.exists():
        write(arguments.folder, arguments.layers)
        print("written: run it again, so that writing is not in the figures", file=sys.stderr)
        return
    lines = (ROOT / "datasets" / "011_0.3260.jsonl").read_text().splitlines()
    stack = TransformersStack(arguments.folder, arguments.dtype)
    prompts = [stack.tokens(json.loads(line)["text"]) for line in lines[: arguments.prompts]]
    layer_bytes, hidden_bytes = exact.needs(stack, prompts)
    before, began = peak_gib(), time.monotonic()
    marks: list[float] = []
    exact.route(stack, prompts, None, lambda done, layers, seconds: marks.append(seconds))
    tokens = sum(map(len, prompts))
    found = {
        "layers": stack.depth,
        "prompts": len(prompts),
        "tokens": tokens,
        "threads": torch.get_num_threads(),
        "dtype": str(stack.dtype),
        "layer_gib": stack.layer_bytes / GIB,
        "told_gib": (layer_bytes + hidden_bytes) / GIB,
        "peak_gib": peak_gib(),
        "before_gib": before,
        "seconds_by_layer": [b - a for a, b in zip([0.0, *marks], marks, strict=False)],
        "seconds": time.monotonic() - began,
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
