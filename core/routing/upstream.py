"""Gate logs in upstream's layout: a folder of `gate_logs_<layer>.json`, each {"step", "num_tokens",
"expert_loads"}."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.routing.blocks import RunBlocks
from core.routing.gatelog import GateLog, GateLogError
from core.routing.meter import Meter
from core.stats.arrays import Floats, Ints

LAYER_FILE = re.compile(r"gate_logs_(\d+)\.json$")
MAX_LOAD = 1 << 32  # of an expert in a step: far beyond any real one; its square does not overflow


@dataclass(frozen=True, slots=True)
class JsonLayer:
    """One layer's file: `loads` [steps, experts], `tokens` [steps]."""

    loads: Floats
    tokens: Ints
    number: int = 0


def read_layer(path: Path) -> JsonLayer:
    """One `gate_logs_<layer>.json`. GateLogError if it does not have upstream's format."""
    try:
        data: dict[str, Any] = json.loads(path.read_text())
        loads = np.array(data["expert_loads"], dtype=np.float64)
        tokens = np.array(data["num_tokens"], dtype=np.int64)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
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
    named = LAYER_FILE.match(path.name)
    return JsonLayer(loads, tokens, int(named[1]) if named else 0)


def layer_files(folder: Path) -> list[Path]:
    """The layer files of an upstream folder, in layer order."""
    found = [(int(m.group(1)), p) for p in folder.iterdir() if (m := LAYER_FILE.match(p.name))]
    return [p for _, p in sorted(found)]


def read_layers(folder: Path) -> tuple[list[JsonLayer], list[str]]:
    """The layers that can be read, and what is wrong with the others."""
    layers: list[JsonLayer] = []
    problems: list[str] = []
    for path in layer_files(folder):
        try:
            layer = read_layer(path)
        except GateLogError as error:
            problems.append(str(error))
            continue
        if layers and layer.loads.shape[1] != layers[0].loads.shape[1]:
            experts, others = layer.loads.shape[1], layers[0].loads.shape[1]
            problems.append(f"{path}: {experts} experts, the layers before it have {others}")
            continue
        layers.append(layer)
    return layers, problems


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
