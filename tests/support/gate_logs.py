"""Small gate logs: ours, one step at a time, and upstream's JSON layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from core.recorder.gatescope_recorder.gatelog import GateLogWriter, Header, Step


def writer(
    folder: Path,
    dp: int = 0,
    pp: int = 0,
    *,
    layers: int = 1,
    dp_size: int = 1,
    pp_size: int = 1,
    **more: Any,
) -> GateLogWriter:
    sizes: dict[str, Any] = {"dp": dp, "dp_size": dp_size, "pp": pp, "pp_size": pp_size}
    header = Header("test", "tiny", layers, 2, 1, **sizes, **more)
    return GateLogWriter(folder / f"dp{dp}_pp{pp}.gatelog", header)


def step(
    index: int,
    loads: list[int],
    label: str = "001",
    start: int = 0,
    duration: int = 10,
    layers: int = 1,
) -> Step:
    """A step of top-1 routing with as many tokens as its loads sum to, all of one segment."""
    tokens = sum(loads)
    counts = np.array([loads] * layers, dtype=np.uint16)
    return Step(
        index, start, duration, tokens, tokens, 0, 1, {label: tokens} if tokens else {}, counts
    )


def write_layers(folder: Path, layers: list[list[list[float]]], tokens: list[int]) -> Path:
    """Upstream's layout: one file a layer, `layers[l][s][e]`."""
    folder.mkdir(parents=True)
    for number, loads in enumerate(layers):
        data = {"step": list(range(len(tokens))), "num_tokens": tokens, "expert_loads": loads}
        (folder / f"gate_logs_{number}.json").write_text(json.dumps(data))
    return folder
