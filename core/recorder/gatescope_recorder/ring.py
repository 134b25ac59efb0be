"""Slots between the engine's thread, which must never wait, and the writer's thread, which may."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import torch


class Slot:
    """Counts of one step and the times of its forward pass, by the GPU's clock if there is one."""

    def __init__(self, counts: torch.Tensor, cuda: bool) -> None:
        self.counts = counts  # [layers, experts + 1], pinned
        self.launched_ns = self.returned_ns = 0
        # start and end of the forward pass, end of the copy
        self.events: tuple[Any, Any, Any] | None = None
        if cuda:
            self.events = (
                torch.cuda.Event(enable_timing=True),
                torch.cuda.Event(enable_timing=True),
                torch.cuda.Event(),
            )

    def start(self) -> None:
        self.launched_ns = time.perf_counter_ns()
        if self.events:
            self.events[0].record()

    def end(self) -> None:
        self.returned_ns = time.perf_counter_ns()
        if self.events:
            self.events[1].record()

    def copied(self) -> None:
        if self.events:
            self.events[2].record()

    @property
    def is_done(self) -> bool:
        """Whether the counts have arrived. Never waits."""
        return self.events is None or bool(self.events[2].query())


class Ring:
    """`size` slots. `take` returns None if all are in use: the writer is that far behind."""

    def __init__(self, size: int, layers: int, experts: int, cuda: bool) -> None:
        counts = torch.zeros(size, layers, experts + 1, dtype=torch.int32, pin_memory=cuda)
        self._free = deque(Slot(counts[n], cuda) for n in range(size))

    def take(self) -> Slot | None:
        try:
            return self._free.popleft()
        except IndexError:
            return None

    def give(self, slot: Slot) -> None:
        self._free.append(slot)
