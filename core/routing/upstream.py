"""Gate logs in upstream's layout: a folder of `gate_logs_<layer>.json`, each {"step", "num_tokens",
"expert_loads"}."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import GateLogError
from core.routing.blocks import RunBlocks
from core.routing.gatelog import GateLog
from core.routing.meter import Meter
from core.stats.arrays import Floats, Ints

LAYER_FILE = re.compile(r"gate_logs_(\d+)\.json(\.gz)?", re.IGNORECASE)
UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    OverflowError,
    RecursionError,
    EOFError,
    zlib.error,
)
"""What a file raises that is no JSON of upstream's form, or is cut off in its compression."""
MAX_LOAD = 1 << 32  # of an expert in a step: far beyond any real one; its square does not overflow


@dataclass(frozen=True, slots=True)
class JsonLayer:
    """One layer's file: `loads` [steps, experts], `tokens` [steps]."""

    loads: Floats
    tokens: Ints
    number: int = 0


def label(folder: str) -> str:
    """`gates_logs_1`, `gates_logs_01` and `gates_logs_001` are dataset 001; `gates_logs_001-r2` is
    its second repeat."""
    index, dash, repeat = folder.lower().removeprefix("gates_logs_").partition("-")
    number = str(int(index)) if index.isdecimal() else index
    return number.zfill(3) + dash + repeat


def read_layer(path: Path) -> JsonLayer:
    """One `gate_logs_<layer>.json`, or `.json.gz`. GateLogError if it does not have upstream's
    format."""
    try:
        data = path.read_bytes()
        is_packed = path.name.lower().endswith(".gz")
        found: dict[str, Any] = json.loads(gzip.decompress(data) if is_packed else data)
        loads, tokens = _counts(found["expert_loads"]), _counts(found["num_tokens"])
    except UNREADABLE as error:
        raise GateLogError(
            f"{path}: not a readable gate log: {type(error).__name__}: {error}"
        ) from None
    if loads.ndim != 2 or tokens.ndim != 1 or len(loads) != len(tokens) or not loads.size:
        raise GateLogError(
            f"{path}: expected a row of expert loads per step, got {loads.shape} for {tokens.shape}"
        )
    if (
        not ((loads >= 0) & (loads <= MAX_LOAD)).all()
        or not ((tokens >= 0) & (tokens <= MAX_LOAD)).all()
    ):
        raise GateLogError(f"{path}: holds loads that are negative, not finite or above {MAX_LOAD}")
    if (tokens != np.floor(tokens)).any():
        raise GateLogError(f"{path}: expected whole numbers in num_tokens, got fractions")
    named = LAYER_FILE.fullmatch(path.name)
    return JsonLayer(loads, tokens.astype(np.int64), int(named[1]) if named else 0)


def _counts(rows: Any) -> Floats:
    """Numbers, or texts of numbers, as an array. ValueError for anything else."""
    found = np.array(rows)
    if found.dtype == np.bool_:
        raise ValueError("expected counts, got true and false")
    return found.astype(np.float64)


def layer_files(folder: Path) -> dict[int, list[Path]]:
    """Layer number → its file in an upstream folder, in layer order; where several files claim one
    number, all of them."""
    found: dict[int, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if (named := LAYER_FILE.fullmatch(path.name)) and path.is_file():
            found.setdefault(int(named.group(1)), []).append(path)
    return dict(sorted(found.items()))


def read_layers(folder: Path) -> tuple[list[JsonLayer], list[str]]:
    """The layers that can be read, and what is wrong with the others."""
    layers: dict[Path, JsonLayer] = {}
    problems: list[str] = []
    for number, paths in layer_files(folder).items():
        try:
            same = [read_layer(path) for path in paths]
        except GateLogError as error:
            problems.append(str(error))
            continue
        if len(paths) > 1:
            names = ", ".join(path.name for path in paths)
            problems.append(f"{folder}: layer {number} is in {len(paths)} files, {names}; keep one")
            if not all(_are_equal(same[0], other) for other in same):
                continue
        layers[paths[0]] = same[0]
    counts = Counter(layer.loads.shape[1] for layer in layers.values())
    usual = counts.most_common(1)[0][0] if counts else 0
    problems += [
        f"{path}: {layer.loads.shape[1]} experts, most layers have {usual}"
        for path, layer in layers.items()
        if layer.loads.shape[1] != usual
    ]
    return [layer for layer in layers.values() if layer.loads.shape[1] == usual], problems


def _are_equal(one: JsonLayer, other: JsonLayer) -> bool:
    return np.array_equal(one.loads, other.loads) and np.array_equal(one.tokens, other.tokens)


def run_of(label: str, layers: Sequence[JsonLayer]) -> RunBlocks:
    """Upstream's files as a run; layers that logged different steps are added one by one.

    GateLogError if no step has tokens.
    """
    sums = np.concatenate([layer.loads.sum(axis=1) for layer in layers])
    tokens = np.concatenate([layer.tokens for layer in layers])
    if not (tokens > 0).any():
        raise GateLogError("no step with tokens")
    top_k = float(np.median(sums[tokens > 0] / tokens[tokens > 0]))
    meter, numbers = Meter(), tuple(layer.number for layer in layers)
    if all(np.array_equal(layer.tokens, layers[0].tokens) for layer in layers):
        loads = np.stack([layer.loads for layer in layers], axis=1)
        meter.add(_as_log(label, loads, layers[0].tokens, top_k, numbers))
        return meter.runs[label]
    for place, layer in enumerate(layers):
        loads = np.zeros((len(layer.tokens), len(layers), layer.loads.shape[1]))
        own = np.zeros(loads.shape[:2], np.int64)
        loads[:, place], own[:, place] = layer.loads, layer.tokens
        if (layer.tokens > 0).any():
            meter.add(_as_log(label, loads, layer.tokens, top_k, numbers), own)
    return meter.runs[label]


def _as_log(
    label: str, loads: Floats, tokens: Ints, top_k: float, numbers: tuple[int, ...]
) -> GateLog:
    none = np.zeros(len(tokens), np.int64)
    columns = {"tokens": tokens, "prefill_tokens": none}
    return GateLog(loads, columns, {label: tokens}, top_k, layer_numbers=numbers)  # type: ignore[arg-type]  # floats: upstream's may be means
