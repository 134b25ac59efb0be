"""Runs inside an environment with torch and transformers: a small random checkpoint of each family,
streamed layer by layer, against one forward pass of the whole model.

argv: a folder to write the checkpoints to. Prints {family: share of picks that agree, by layer},
and of damaged copies of the first {what is damaged: what is said}.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[2]))

from core.builtin import checkpoint
from core.errors import FileError
from core.prediction import exact
from core.prediction.transformers_stack import FAMILIES, TransformersStack

SMALL: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
}
EXPERTS = {"mixtral": "num_local_experts", "olmoe": "num_experts"}
OWN: dict[str, dict[str, Any]] = {
    "mixtral": {"sliding_window": 16},
    "deepseek_v2": {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
    "deepseek_v3": {"first_k_dense_replace": 1, "n_group": 2, "topk_group": 1},
}
DEEPSEEK = {
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
}
TEXTS = ("What is a router?", "for i in range(8): print(i ** 2)\n" * 3, "Hi", "Ünïcode … 42")


def small_config(family: str) -> Any:
    """A config of that family, random weights in a few hundred kilobytes."""
    deepseek = DEEPSEEK if family.startswith("deepseek") else {}
    counts = {} if deepseek else {EXPERTS.get(family, "num_experts"): 8}
    fields = {**SMALL, **deepseek, **counts, **OWN.get(family, {})}
    return transformers.AutoConfig.for_model(family, **fields)


def write(family: str, folder: Path) -> None:
    """A checkpoint of one file a layer or so, as large models come, with our byte tokens."""
    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_config(small_config(family))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder, max_shard_size="200KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((checkpoint.FOLDER / name).read_bytes())


def whole(folder: Path, prompts: list[list[int]]) -> list[list[Any]]:
    """The picks of an ordinary forward pass, by layer and prompt."""
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    found: dict[int, list[Any]] = {}
    for number, layer in enumerate(model.layers):
        if hasattr(layer.mlp, "experts"):
            layer.mlp.experts.register_forward_pre_hook(
                lambda _, given, number=number: found.setdefault(number, []).append(
                    given[1].numpy()
                )
            )
    with torch.no_grad():
        for prompt in prompts:
            model(input_ids=torch.tensor([prompt]))
    return [found[number] for number in sorted(found)]


def agreement(family: str, folder: Path) -> list[float]:
    """Share of tokens whose picks are the same set, by layer."""
    write(family, folder)
    stack = TransformersStack(folder, "float32")
    prompts = [stack.tokens(text) for text in TEXTS]
    ours = exact.route(stack, prompts)
    theirs = whole(folder, prompts)
    assert len(ours.picks) == len(theirs)
    return [
        float(np.mean([same(a, b) for a, b in zip(mine, other, strict=True)]))
        for mine, other in zip(ours.picks, theirs, strict=True)
    ]


def same(ours: Any, theirs: Any) -> float:
    assert ours.shape == theirs.shape
    return float((np.sort(ours, axis=1) == np.sort(theirs, axis=1)).all(axis=1).mean())


def config(**changed: Any) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))

    return make


INDEX = "model.safetensors.index.json"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 135\n"
DAMAGES: dict[str, Callable[[Path], object]] = {
    "a pointer for a file": lambda f: sorted(f.glob("*.safetensors"))[0].write_text(POINTER),
    "a missing file": lambda f: sorted(f.glob("*.safetensors"))[0].unlink(),
    "no tokenizer": lambda f: list(map(Path.unlink, f.glob("tokenizer*"))),
    "an index of nothing": lambda f: (f / INDEX).write_text('{"weight_map": null}'),
    "an unknown family": config(model_type="nosuch"),
    "more top-k than experts": config(num_experts_per_tok=99),
    "other sizes": config(hidden_size=32),
}


def refused(good: Path, make: Callable[[Path], object]) -> str:
    folder = good.with_name("damaged")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder)
    make(folder)
    try:
        stack = TransformersStack(folder, "float32")
        exact.route(stack, [stack.tokens(text) for text in TEXTS])
    except FileError as error:
        return str(error).replace(str(folder), "")
    return "nothing"


if __name__ == "__main__":
    place = Path(sys.argv[1])
    print(json.dumps({name: agreement(name, place / name) for name in FAMILIES}))
    print(json.dumps({what: refused(place / FAMILIES[0], make) for what, make in DAMAGES.items()}))
