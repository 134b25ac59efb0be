"""Measured times of the MoE kernel and of whole steps on one H200: an oracle, never committed."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest

from core.recorder.gatescope_recorder.kernel import Kernel, tilings
from core.routing.price import PriceList, Timed

POINTS = Path(__file__).parents[3] / "shared" / "gpu"
needs_points = pytest.mark.skipif(
    not POINTS.is_dir(), reason="the measured points are not beside this checkout"
)
BLOCKS = ("BLOCK_SIZE_M", "BLOCK_SIZE_N")


def h200_list(shape: str = "TP1") -> PriceList:
    """The list of one shape: TP1, TP2 or TP4 by the tuned tables, or EP2 or EP4 by vLLM's rule."""
    name = "tile_cost_ep.json" if shape.startswith("EP") else "tile_cost.json"
    points = [p for p in json.loads((POINTS / name).read_text()) if p["shape"] == shape]
    local = points[0].get("local", 8)
    sizes = defaultdict(list)
    for point in points:
        sizes[point["M"]].append(point)
    timed = [
        Timed(m, [p["loads"][:local] for p in own], [p["us"] for p in own])
        for m, own in sorted(sizes.items())
    ]
    blocks = _tuned() if shape == "TP1" else _of_points(points)
    kernel = Kernel(
        "triton",
        sms=132,
        experts=8,
        local_experts=local,
        top_k=2,
        columns=(2 * points[0]["inter"], 4096),
        tilings=tilings(lambda m: blocks[min(blocks, key=lambda key: abs(key - m))], 2048),
        source="tuned",
    )
    return PriceList("NVIDIA H200", "vllm 0.25.1", kernel, timed)


def _tuned() -> dict[int, tuple[int, int]]:
    table = json.loads((POINTS / "h200-tp1-cost" / "blocks.json").read_text())
    return {int(size): (found[BLOCKS[0]], found[BLOCKS[1]]) for size, found in table.items()}


def _of_points(points: list[dict[str, dict[str, int]]]) -> dict[int, tuple[int, int]]:
    return {int(str(p["M"])): (p["config"][BLOCKS[0]], p["config"][BLOCKS[1]]) for p in points}
