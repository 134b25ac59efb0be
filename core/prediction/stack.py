"""A model as a stack of layers that are run one at a time, all prompts through one layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from core.backends import modelfiles
from core.builtin import checkpoint
from core.errors import FileError, UsageError
from core.files import read
from core.stats.arrays import Floats

Picks = npt.NDArray[np.int16]
"""The experts of each token [tokens, top_k]."""
BUILTIN = "builtin"
"""What --model calls the built-in engine's model."""
MODULES = ("torch", "transformers")
DUMMY = (
    "{folder}: holds no weights (*.safetensors): a router without its weights, as under"
    ' load_format = "dummy", says nothing about the model; name a folder with the weights'
)
GIB = 1 << 30


class Stack(Protocol):
    """A model's layers. `through` runs all prompts through one of them."""

    name: str
    depth: int  # layers, dense ones included
    experts: int
    top_k: int
    layer_bytes: int  # weights of the largest layer
    peak_bytes: int  # what loading and running one layer needs, without the hidden states
    token_bytes: int  # of one token's hidden state

    def tokens(self, text: str) -> list[int]:
        """The tokens that a server would make of a prompt, BOS included."""

    def embed(self, prompts: Sequence[Sequence[int]]) -> Any:
        """The hidden states before the first layer."""

    def through(self, layer: int, hidden: Any) -> list[Picks] | None:
        """Take all hidden states through a layer, in place; the experts chosen, by prompt. None for
        a layer without experts."""

    def gate_table(self) -> Floats | None:
        """What the first layer's router would choose for each token of the vocabulary without
        attention: 1 or 0, [vocabulary, experts]. None if that layer has no router."""


def open_model(model: str, dtype: str = "auto") -> Stack:
    """The model in a folder, or of that hub name in the hub's cache. FileError or UsageError if it
    cannot be streamed; the text says why."""
    if model == BUILTIN or _is_builtin(Path(model)):
        from core.prediction.builtin_stack import BuiltinStack

        return BuiltinStack()
    folder = _folder(model)
    about = read(folder / "config.json", dict[str, Any])
    if not any(folder.glob("*.safetensors")):
        raise FileError(DUMMY.format(folder=folder))
    if about.get("quantization_config"):
        raise UsageError(
            f"{folder}: quantised weights, whose kernels need a GPU; name the checkpoint that they"
            " were made from"
        )
    _check_modules()
    from core.prediction.transformers_stack import TransformersStack

    return TransformersStack(folder, dtype)


def _is_builtin(folder: Path) -> bool:
    """Whether a folder holds the built-in engine's own weights, byte for byte."""
    theirs, ours = folder / "model.safetensors", checkpoint.FOLDER / "model.safetensors"
    try:
        return theirs.stat().st_size == ours.stat().st_size and (
            theirs.read_bytes() == ours.read_bytes()
        )
    except OSError:
        return False


def _folder(model: str) -> Path:
    if (Path(model) / "config.json").is_file():
        return Path(model)
    cached = sorted(modelfiles.cached(model).glob("snapshots/*/config.json"))
    if not cached:
        raise FileError(
            f"{model}: no config.json there, nor in the hub's cache; name a folder with a"
            f" checkpoint, or {BUILTIN}"
        )
    return cached[-1].parent


def _check_modules() -> None:
    from importlib.util import find_spec

    if missing := [name for name in MODULES if find_spec(name) is None]:
        raise UsageError(
            f"{' and '.join(missing)} must be installed to stream a checkpoint; pip install"
            " 'gatescope[predict]', or use --model builtin"
        )
