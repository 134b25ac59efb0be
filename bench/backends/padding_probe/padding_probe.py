"""A vLLM plugin beside gatescope's recorder: what the rows of padding choose under CUDA graphs.

With this folder on PYTHONPATH, every recorded worker writes DP_PP.padding beside its gate log:
arrays of NumPy's own format, one pair after another: `steps` [n, 2] (the log's step index, tokens)
and `ids` [n, layers, ROWS, top_k], the choices in the ROWS rows behind the step's own. Rows beyond
the graph's are of an earlier step; bench/backends/woken.py leaves them out.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROWS = 8  # CUDA graphs for up to 256 tokens are at most 8 apart
KEPT = 64  # steps between two writes, each of which waits for the GPU


class Probe:
    def __init__(self, path: Path) -> None:
        self.file = path.with_suffix(".padding").open("ab")
        self.steps: list[tuple[int, int]] = []
        self.ids: list[torch.Tensor] = []

    def add(self, index: int, tokens: int, ids: torch.Tensor) -> None:
        if tokens + ROWS > ids.shape[1]:
            return
        self.steps.append((index, tokens))
        self.ids.append(ids[:, tokens : tokens + ROWS].clone())
        if len(self.steps) == KEPT:
            np.save(self.file, np.array(self.steps, np.int64))
            np.save(self.file, torch.stack(self.ids).cpu().numpy().astype(np.uint16))
            self.file.flush()
            self.steps, self.ids = [], []


def register() -> None:
    try:
        from gatescope_recorder.recorder import Recorder
    except ImportError:  # a process without the recorder
        return
    if hasattr(Recorder.end, "__wrapped__"):
        return
    original, probes = Recorder.end, {}

    @functools.wraps(original)
    def end(self: Recorder, scheduled: Any, slot: Any) -> None:
        index, tokens = self._index, scheduled.total_num_scheduled_tokens
        original(self, scheduled, slot)
        if slot is not None and self.is_on:
            if id(self) not in probes:
                probes[id(self)] = Probe(self.path)
            probes[id(self)].add(index, tokens, self.capture.ids)

    Recorder.end = end
