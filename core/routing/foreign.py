"""Expert loads that other projects log, as steps of a gate log.

- SGLang: what `dump_expert_distribution_record` writes in mode stat, a .pt of {"logical_count":
  [steps, layers, experts], …}; and the JSON with that key, which `--init-expert-location` takes.
  Not in the file: experts per token, and when a step ran.
- TensorRT-LLM: the folder EXPERT_STATISTIC_PATH with `meta_info.json` and `rank<N>.safetensors`,
  whose key `<iteration>_<layer>` holds the tokens of each expert that the rank sent.
- vLLM: answers of a server with `--enable-return-routed-experts`, a JSON object a line or an array
  of them, whose choices hold `routed_experts` (base64 of .npy, [tokens, layers, top_k]). They say
  nothing of steps: the prompt and the rest of each answer count as a step each.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core.errors import GateLogError, UsageError
from core.recorder.gatescope_recorder.gatelog import GateLogWriter, Header, Step
from core.routing import torch_file
from core.stats import arrays
from core.stats.arrays import Ints

UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, OverflowError, RecursionError)
MAX_COUNT = 1 << 31
MAX_EXPERTS = 1 << 20


@dataclass(frozen=True, slots=True)
class Foreign:
    """`loads` [steps, layers, experts]. `prefill` [steps]: prompt tokens, None where the file does
    not say; `ranks`: expert-parallel ones, 1 where it does not say."""

    engine: str
    loads: Ints
    top_k: int
    layers: tuple[int, ...] = ()  # the model's own numbers
    prefill: Ints | None = None
    ranks: int = 1

    @property
    def tokens(self) -> Ints:
        return np.asarray(self.loads[:, 0].sum(axis=1) // self.top_k)


def read(path: Path, top_k: int | None, experts: int | None) -> Foreign:
    """Any of the three. UsageError if `top_k` or `experts` is needed and not given; GateLogError if
    it is none of them."""
    if path.is_dir():
        return _checked(path, _tensorrt(path))
    if path.suffix == ".pt":
        return _checked(path, _sglang(path, torch_file.read(path), top_k))
    found = _json(path)
    if isinstance(found, dict) and "logical_count" in found:
        return _checked(path, _sglang(path, found, top_k))
    return _checked(path, _answers(path, found if isinstance(found, list) else [found], experts))


def _json(path: Path) -> Any:
    """One JSON value, or an array of those in its lines."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        try:
            return json.loads(text)
        except ValueError:
            return [json.loads(line) for line in text.splitlines() if line.strip()]
    except OSError as error:
        raise GateLogError(f"{path}: cannot be read: {error.strerror}") from None
    except UNREADABLE as error:
        raise GateLogError(f"{path}: neither JSON nor JSON lines: {error}") from None


def _checked(path: Path, found: Foreign) -> Foreign:
    """Without steps that hold no token. GateLogError where counts are impossible."""
    loads, k = found.loads, found.top_k
    if loads.ndim != 3 or 0 in loads.shape[1:] or loads.min(initial=0) < 0:
        raise GateLogError(f"{path}: expected counts [steps, layers, experts], got {loads.shape}")
    if loads.max(initial=0) >= MAX_COUNT:
        raise GateLogError(f"{path}: a count of {loads.max()}: damaged")
    sums = loads.sum(axis=2)
    if not 0 < k <= loads.shape[2] or (sums % k).any():
        raise GateLogError(f"{path}: counts do not add up to tokens with {k} experts each")
    if (sums != sums[:, :1]).any():
        raise GateLogError(f"{path}: in a step, layers counted different numbers of tokens")
    own = sums[:, 0] > 0
    if not own.any():
        raise GateLogError(f"{path}: no step with tokens")
    prefill = None if found.prefill is None else found.prefill[own]
    return Foreign(found.engine, loads[own], k, found.layers, prefill, found.ranks)


# --- SGLang ---


def _sglang(path: Path, found: Any, top_k: int | None) -> Foreign:
    if not isinstance(found, dict) or "logical_count" not in found:
        held = ", ".join(map(str, found)) if isinstance(found, dict) else type(found).__name__
        raise GateLogError(
            f"{path}: no logical_count in it ({held}); SGLang writes one with"
            " --expert-distribution-recorder-mode stat"
        )
    if top_k is None:
        raise UsageError(f"{path}: does not say how many experts a token has; give --top-k")
    loads = _whole(path, found["logical_count"])
    loads = loads[None] if loads.ndim == 2 else loads
    if loads.ndim != 3:
        raise GateLogError(f"{path}: expected counts [steps, layers, experts], got {loads.shape}")
    layers = np.flatnonzero(loads.sum(axis=(0, 2)))  # dense layers have a row too, of zeros
    return Foreign("sglang", loads[:, layers], top_k, tuple(layers.tolist()))


def _whole(path: Path, counts: Any) -> Ints:
    try:
        found = np.asarray(counts)
        if found.dtype.kind not in "iu" and not (
            found.dtype.kind == "f"
            and ((found == np.floor(found)) & (abs(found) < MAX_COUNT)).all()
        ):
            raise ValueError(f"{found.dtype} instead of whole numbers")
        return found.astype(np.int64)
    except UNREADABLE as error:
        raise GateLogError(f"{path}: logical_count cannot be read: {error}") from None


# --- TensorRT-LLM ---


def _tensorrt(path: Path) -> Foreign:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        meta = json.loads((path / "meta_info.json").read_text(encoding="utf-8-sig"))
        files = [load_file(file) for file in sorted(path.glob("rank*.safetensors"))]
        top_k, experts = int(meta["num_experts_per_token"]), int(meta["num_experts"])
        ranks = int(meta.get("ep_size", len(files)))
        if not (0 < experts < MAX_EXPERTS and 0 < ranks < MAX_EXPERTS):
            raise ValueError(f"{experts} experts on {ranks} ranks")
        keys = [tuple(map(int, key.split("_"))) for one in files for key in one]
        steps, layers = (sorted({key[axis] for key in keys}) for axis in (0, 1))
        loads = np.zeros((len(steps), len(layers), experts), np.int64)
        for one in files:
            for key, counts in one.items():
                step, layer = map(int, key.split("_"))
                loads[steps.index(step), layers.index(layer)] += _whole(path, counts)
    except (*UNREADABLE, IndexError, SafetensorError) as error:
        raise GateLogError(
            f"{path}: not a folder of TensorRT-LLM's expert statistics: {error}"
        ) from None
    return Foreign("tensorrt-llm", loads, top_k, tuple(layers), None, ranks)


# --- vLLM's answers ---


def _answers(path: Path, answers: list[Any], experts: int | None) -> Foreign:
    if experts is None:
        raise UsageError(f"{path}: does not say how many experts a layer has; give --experts")
    loads, prefill, top_k = [], [], set()
    for routed, prompt in _routed(path, answers):
        top_k.add(routed.shape[2])
        for part, own in ((routed[:prompt], prompt), (routed[prompt:], 0)):
            loads.append(_counted(path, part, experts))
            prefill.append(own)
    if len(top_k) != 1 or len({one.shape for one in loads}) != 1:
        raise GateLogError(f"{path}: no answer with routed_experts, or of several models")
    return Foreign("vllm", np.stack(loads), top_k.pop(), prefill=np.array(prefill))


def _routed(path: Path, answers: list[Any]) -> Iterator[tuple[npt.NDArray[Any], int]]:
    """Experts [tokens, layers, top_k] and prompt tokens of every choice that has them."""
    for number, answer in enumerate(answers, 1):
        try:
            prompt = int(answer["usage"]["prompt_tokens"])
            texts = [choice["routed_experts"] for choice in answer["choices"]]
            found = [
                arrays.load(io.BytesIO(base64.b64decode(text, validate=True)))[""]
                for text in texts
                if text is not None
            ]
            if any(one.ndim != 3 or one.dtype.kind not in "iu" for one in found):
                raise ValueError("expected experts [tokens, layers, top_k]")
        except UNREADABLE as error:
            raise GateLogError(
                f"{path}: answer {number} holds no routed_experts: {error!r}"
            ) from None
        yield from ((one, prompt) for one in found)


def _counted(path: Path, routed: npt.NDArray[Any], experts: int) -> Ints:
    """[layers, experts]."""
    ids = routed.astype(np.int64)
    if ids.min(initial=0) < 0 or ids.max(initial=0) >= experts:
        raise GateLogError(f"{path}: expert {ids.max()} of {experts}; give the right --experts")
    layers = ids.shape[1]
    flat = ids + np.arange(layers)[None, :, None] * experts
    return np.bincount(flat.ravel(), minlength=layers * experts).reshape(layers, experts)


# --- as a gate log ---


def write(found: Foreign, model: str, path: Path) -> None:
    """A gate log of it; steps lie a millisecond apart and lasted no time. Where prompt tokens are
    not known, neither are decoded ones: both columns are 0."""
    _, layers, experts = found.loads.shape
    share = experts // found.ranks
    is_placed = found.ranks > 1 and experts % found.ranks == 0
    header = Header(
        engine=found.engine,
        model=model,
        layers=layers,
        experts=experts,
        top_k=found.top_k,
        count_bytes=4,
        ranks=found.ranks if is_placed else 1,
        placement=tuple(e // share for e in range(experts)) if is_placed else (),
        layer_names=tuple(f"layers.{n}" for n in found.layers),
        hook="imported",
    )
    writer = GateLogWriter(path, header)
    for index, (counts, tokens) in enumerate(zip(found.loads, found.tokens.tolist(), strict=True)):
        prompt = 0 if found.prefill is None else int(found.prefill[index])
        decoded = 0 if found.prefill is None else tokens - prompt
        writer.append(
            Step(index, index * 10**6, 0, tokens, prompt, decoded, 1, {"": tokens}, counts)
        )
    writer.close()
