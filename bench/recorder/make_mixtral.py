"""Makes a model folder with Mixtral-8x7B's shapes and tokenizer, without weights, for vLLM's
`--load-format dummy`.

    python bench/recorder/make_mixtral.py FOLDER

The environment needs transformers, sentencepiece and mistral-common.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

SHAPES = Path(__file__).parent / "mixtral-8x7b" / "config.json"


def make(folder: Path) -> None:
    """Write config.json, and tokenizer.json converted from the file that mistral-common ships."""
    from transformers import LlamaTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        source = files("mistral_common") / "data" / "tokenizer.model.v1"
        (Path(scratch) / "tokenizer.model").write_bytes(source.read_bytes())
        tokenizer = LlamaTokenizerFast.from_pretrained(scratch)
        tokenizer.save_pretrained(folder)
    shutil.copy(SHAPES, folder / "config.json")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
