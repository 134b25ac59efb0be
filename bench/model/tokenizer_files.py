"""Write the byte-level tokenizer in Hugging Face's form: ids 0-255 are bytes, 256 BOS, 257 EOS; BOS
goes first.

    python tokenizer_files.py tiny-mixtral
"""

import json
import sys
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors


def characters() -> list[str]:
    """The printable character that stands for each byte in byte-level vocabularies (GPT-2's)."""
    own = {*range(33, 127), *range(161, 173), *range(174, 256)}
    moved = iter(range(256, 512))
    return [chr(b) if b in own else chr(next(moved)) for b in range(256)]


def main() -> None:
    """Write tokenizer.json, tokenizer_config.json and generation_config.json."""
    folder = Path(sys.argv[1])
    tokenizer = Tokenizer(models.BPE(vocab={c: b for b, c in enumerate(characters())}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken("<s>", special=True), AddedToken("</s>", special=True)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 256)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "model_max_length": 4096,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    (folder / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 256, "eos_token_id": 257}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
