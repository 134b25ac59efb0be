"""A checkpoint as a stack, through transformers' own model classes: every family's attention,
masks and router are theirs.

The model is built on the meta device, without memory. For each layer, its weights are loaded as
transformers would load them, and the model's own forward pass is run with that layer as its only
one, from the hidden states of the layer before.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import safe_open
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig

from core.errors import FileError, GatescopeError, UsageError
from core.prediction.stack import Picks
from core.stats.arrays import Floats

FAMILIES = ("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "olmoe")
"""Those that tests run; another family whose blocks are built alike may do as well."""
BATCH_TOKENS = 4096  # padding included
COPIES = 3  # of the experts, while transformers stacks and joins them


class TransformersStack:
    """One checkpoint folder. `dtype`: "auto" for the checkpoint's own, or torch's name of one."""

    def __init__(self, folder: Path, dtype: str) -> None:
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self._folder = folder
        with _reading(folder):
            self._open(dtype)

    def _open(self, dtype: str) -> None:
        folder = self._folder
        self._config = transformers.AutoConfig.from_pretrained(folder)
        self._config._experts_implementation = "eager"  # loops over the experts that were chosen
        self.dtype = _dtype(self._config, dtype)
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        with torch.device("meta"):
            self._model = transformers.AutoModel.from_config(self._config, dtype=self.dtype).eval()
        self._layers = list(self._model.layers)
        self._kinds = list(getattr(self._config, "layer_types", None) or ())
        self._files = _places(folder)
        self._mapping = get_model_conversion_mapping(self._model)
        self._model.rotary_emb = type(self._model.rotary_emb)(config=self._config)  # not on meta
        self._model.norm = torch.nn.Identity()
        routers = [layer.mlp for layer in self._layers if hasattr(layer.mlp, "experts")]
        if not routers:
            raise UsageError(f"{folder}: {self._config.model_type} has no layer of experts")
        self.name, self.depth = folder.name, len(self._layers)
        self.experts, self.top_k = routers[0].experts.num_experts, routers[0].gate.top_k
        if not 0 < self.top_k <= self.experts:
            raise ValueError(f"top-{self.top_k} of {self.experts} experts")
        sizes = [sum(p.numel() for p in layer.parameters()) for layer in self._layers]
        self.layer_bytes = max(sizes) * self.dtype.itemsize
        self.peak_bytes = COPIES * self.layer_bytes
        self.token_bytes = self._config.hidden_size * self.dtype.itemsize
        self._prompts: Sequence[Sequence[int]] = ()
        self._batches: list[list[int]] = []

    def tokens(self, text: str) -> list[int]:
        """As vLLM's completions endpoint does it."""
        ids: list[int] = self._tokenizer(text)["input_ids"]
        return ids

    def embed(self, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """[prompts, longest, hidden] of each batch: prompts of like length, padded on the right,
        where no token of a causal model sees the padding."""
        self._prompts, self._batches = prompts, _batches([len(p) for p in prompts])
        with self._loaded("embed_tokens"), torch.no_grad():
            return [self._model.embed_tokens(self._padded(batch)) for batch in self._batches]

    def through(self, layer: int, hidden: list[torch.Tensor]) -> list[Picks] | None:
        """As `Stack.through`."""
        found: dict[int, Picks] = {}
        with self._only(layer) as chosen, torch.no_grad():
            for place, batch in enumerate(self._batches):
                chosen.clear()
                states = self._model(inputs_embeds=hidden[place], use_cache=False)
                hidden[place] = states.last_hidden_state
                if chosen:
                    found |= self._by_prompt(batch, chosen[0])
        return [found[place] for place in range(len(self._prompts))] if found else None

    def gate_table(self) -> Floats | None:
        """As `Stack.gate_table`."""
        first = self._layers[0]
        if not hasattr(first.mlp, "experts"):
            return None
        with self._loaded("layers.0", "embed_tokens"), torch.no_grad():
            h = first.post_attention_layernorm(self._model.embed_tokens.weight)
            chosen = first.mlp.gate(h[None])[-1]
            table = torch.zeros(len(h), self.experts).scatter_(1, chosen.view(len(h), -1), 1.0)
        return np.asarray(table.double().numpy())

    @contextlib.contextmanager
    def _only(self, layer: int) -> Iterator[list[torch.Tensor]]:
        """The model with one layer, in memory; a list that gets the experts chosen in each pass."""
        chosen: list[torch.Tensor] = []
        experts = getattr(self._layers[layer].mlp, "experts", None)
        with self._loaded(f"layers.{layer}"), contextlib.ExitStack() as undo:
            undo.callback(self._stand, self._layers, self._kinds)
            self._stand([self._layers[layer]], self._kinds[layer : layer + 1])
            if experts is not None:
                hook = experts.register_forward_pre_hook(lambda _, given: chosen.append(given[1]))
                undo.callback(hook.remove)
            yield chosen

    def _stand(self, layers: list[Any], kinds: list[str]) -> None:
        """Make these the model's layers; `kinds`: their attention, where the config has it."""
        self._model.layers = torch.nn.ModuleList(layers)
        self._config.num_hidden_layers = len(layers)
        if kinds:
            self._config.layer_types = kinds

    @contextlib.contextmanager
    def _loaded(self, *modules: str) -> Iterator[None]:
        """The weights of these modules in memory."""
        with _reading(self._folder), contextlib.ExitStack() as files:
            opened: dict[Path, Any] = {}
            tensors = {}
            for name, file in self._files.items():
                if name.removeprefix(f"{self._model.base_model_prefix}.").startswith(
                    tuple(f"{module}." for module in modules)
                ):
                    if file not in opened:
                        opened[file] = files.enter_context(safe_open(file, "pt"))
                    tensors[name] = opened[file].get_slice(name)
            how = LoadStateDictConfig(dtype=self.dtype, weight_mapping=self._mapping)
            convert_and_load_state_dict_in_model(self._model, tensors, how)
        owners = [self._model.get_submodule(module) for module in modules]
        missing = [name for owner in owners for name, p in owner.named_parameters() if p.is_meta]
        if missing:
            raise FileError(f"{self.name}: the checkpoint lacks {missing[0]} of {modules[0]}")
        try:
            yield
        finally:
            for owner in owners:
                owner.to("meta")

    def _padded(self, batch: list[int]) -> torch.Tensor:
        longest = max(len(self._prompts[place]) for place in batch)
        rows = [
            [*self._prompts[place], *[0] * (longest - len(self._prompts[place]))] for place in batch
        ]
        return torch.tensor(rows)

    def _by_prompt(self, batch: list[int], chosen: torch.Tensor) -> dict[int, Picks]:
        rows = chosen.view(len(batch), -1, self.top_k).numpy().astype(np.int16)
        pairs = zip(batch, rows, strict=True)
        return {place: row[: len(self._prompts[place])] for place, row in pairs}


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """FileError for whatever transformers, tokenizers, safetensors or torch raise over what is in
    the folder: damaged or missing files, families they do not know, code of its own."""
    try:
        yield
    except (GatescopeError, MemoryError):
        raise
    except Exception as error:
        said = next(filter(None, map(str.strip, str(error).splitlines())), "")
        raise FileError(
            f"{folder}: cannot be read as a checkpoint: {type(error).__name__}: {said}"
        ) from error


def _dtype(config: Any, dtype: str) -> torch.dtype:
    if dtype == "auto":
        return config.dtype or torch.float32
    found = getattr(torch, dtype)
    assert isinstance(found, torch.dtype)
    return found


def _batches(lengths: list[int]) -> list[list[int]]:
    """Prompts by their places: neighbours in length, up to BATCH_TOKENS with padding."""
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not batches or (len(batches[-1]) + 1) * lengths[place] > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(place)
    return batches


def _places(folder: Path) -> dict[str, Path]:
    """The file of each tensor."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = json.loads(index.read_text())["weight_map"]
        return {name: folder / file for name, file in names.items()}
    found: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            found |= dict.fromkeys(opened.keys(), file)
    return found
