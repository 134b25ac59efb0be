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
    """Appends a JSON line whenever the map has changed, or the log goes on in another file: the
    step at which that was seen, and per layer the physical slots of each logical expert (-1: no
    slot). Physical slot p of P lies on rank p // (P / ranks)."""

    def __init__(self, layers: list[Layer]) -> None:
        self._layers = layers
        self._last: tuple[Path | None, list[Any]] = (None, [])

    def poll(self, index: int, path: Path) -> None:
        """Compare the map once; `path` is its file. Called on the writer's thread, which may wait
        for the GPU."""
        states = [getattr(layer.router, "eplb_state", None) for layer in self._layers]
        maps = [getattr(state, "logical_to_physical_map", None) for state in states]
        if any(one is None for one in maps):
            return
        now = torch.stack(maps).cpu().tolist()
        if (path, now) == self._last:
            return
        self._last = (path, now)
        line = {"index": index, "wall_ns": time.time_ns(), "logical_to_physical": now}
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, separators=(",", ":")) + "\n")
