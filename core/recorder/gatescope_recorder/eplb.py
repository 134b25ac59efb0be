"""Logs where EPLB places the experts: counts are by logical expert, so the load per GPU needs the
map at each step."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from .routers import Layer


class MapLog:
    """Appends a JSON line whenever the map has changed: the step at which that was seen, and per
    layer the physical slots of each logical expert (-1: no slot). Physical slot p of P lies on rank
    p // (P / ranks)."""

    def __init__(self, path: Path, layers: list[Layer]) -> None:
        self.path, self._layers = path, layers
        self._last: list[Any] = []

    def poll(self, index: int) -> None:
        """Compare the map once. Called on the writer's thread, which may wait for the GPU."""
        states = [getattr(layer.router, "eplb_state", None) for layer in self._layers]
        maps = [getattr(state, "logical_to_physical_map", None) for state in states]
        if any(one is None for one in maps):
            return
        now = torch.stack(maps).cpu().tolist()
        if now == self._last:
            return
        self._last = now
        line = {"index": index, "wall_ns": time.time_ns(), "logical_to_physical": now}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, separators=(",", ":")) + "\n")
