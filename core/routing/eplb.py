"""Where EPLB had placed the experts when a step ran: maps that the recorder writes beside a log.

A line of `dp0_pp0.eplb.jsonl` holds the forward index at which a map was first seen, and the
physical slots of each layer's logical experts (-1: none). Slot p of P lies on rank p // (P /
ranks). The counts of a gate log are by logical expert; an expert with several replicas is assumed
to share its tokens among them evenly, as vLLM spreads them. The recorder looks once a second, so
steps up to a second after a change count under the previous map.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core.recorder.gatescope_recorder.parts import MAPS, part_files
from core.stats.arrays import Floats, Ints


@dataclass(slots=True)
class Maps:
    """The maps of one pipeline stage, read while they are written; the slots lie on `ranks` EP
    ranks. `log`: the first file of the stage's gate log."""

    log: Path
    ranks: int
    starts: list[int] = field(default_factory=list)
    slots: list[Ints] = field(default_factory=list)  # each [layers, experts, replicas]
    places: dict[int, int] = field(default_factory=dict)  # bytes read of each file, by its number

    def read(self) -> None:
        """Take in the whole lines that are new. ValueError if one is not a map."""
        last = max(self.places, default=0)
        for number, path in part_files(self.log, MAPS).items():
            if number >= last:
                self.places[number] = self._read(path, self.places.get(number, 0))

    def _read(self, path: Path, place: int) -> int:
        """From `place` on, as far as there are whole lines."""
        with open(path, "rb") as file:
            file.seek(place)
            lines = file.read().splitlines(keepends=True)
        for line in lines:
            if not line.endswith(b"\n"):
                break  # still being written
            start, slots = _parsed(line, path)
            self.starts.append(start)
            self.slots.append(slots)
            place += len(line)
        return place

    def rank_loads(self, loads: npt.NDArray[Any], index: Ints) -> Floats | None:
        """`loads` [steps, layers, experts] by rank, [steps, layers, ranks], under the map of each
        step; None before the first map is read.

        `index` [steps]: the steps' forward indices, which never decrease from one call to the next,
        so past maps are dropped. Steps before the first map count under that map. ValueError if a
        map belongs to another model.
        """
        if not self.starts or not len(index):
            return None if not self.starts else np.zeros((0, loads.shape[1], self.ranks))
        used = np.maximum(np.searchsorted(self.starts, index, side="right") - 1, 0)
        by_rank = np.empty((*loads.shape[:2], self.ranks))
        for place in np.unique(used):
            steps = used == place
            by_layer = np.matmul(
                loads[steps].transpose(1, 0, 2), self._share(self.slots[place], loads.shape[1:])
            )
            by_rank[steps] = by_layer.transpose(1, 0, 2)
        past = int(used[-1])
        del self.starts[:past], self.slots[:past]
        return by_rank

    def _share(self, slots: Ints, shape: tuple[int, ...]) -> Floats:
        """[layers, experts, ranks]: the part of an expert's tokens that a rank computes. ValueError
        if `slots` does not have this shape."""
        if slots.shape[:2] != shape:
            (layers, experts), (wanted_layers, wanted_experts) = slots.shape[:2], shape
            raise ValueError(
                f"{self.log}: a map of {layers} layers × {experts} experts, but the gate log has"
                f" {wanted_layers} × {wanted_experts}"
            )
        physical = -(-(int(slots.max()) + 1) // self.ranks)  # slots of a rank
        share = np.stack(
            [(slots // physical == rank).sum(axis=-1) for rank in range(self.ranks)], axis=-1
        )
        return np.asarray(share / share.sum(axis=-1, keepdims=True))


def _parsed(line: bytes, path: Path) -> tuple[int, Ints]:
    try:
        fields = json.loads(line)
        slots = np.array(fields["logical_to_physical"], dtype=np.int64)
        if slots.ndim != 3 or (slots < 0).all(axis=-1).any():
            raise ValueError("an expert has no slot")
        return int(fields["index"]), slots
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path}: a line is not a map of experts: {error}") from None
