"""Writes a tiny seeded Mixtral and its tokenizer to a folder. Run it in the vLLM environment."""

from __future__ import annotations

import json
import sys
from pathlib import Path

LAYERS, EXPERTS, TOP_K, HIDDEN, VOCAB = 4, 8, 2, 128, 512


def write(folder: Path) -> None:
    """Write config.json, random weights (seed 0), and a tokenizer of characters in which every
    token is visible."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=256,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
        num_local_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    torch.manual_seed(0)
    MixtralForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    _write_tokenizer(folder)


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    printable = [chr(code) for code in range(32, 127)] + ["\n"]
    words = {"<s>": 0, "</s>": 1, **{text: place for place, text in enumerate(printable, 2)}}
    words |= {f"({n})": n for n in range(len(words), VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(vocab=words, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
