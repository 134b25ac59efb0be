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


class Clock:
    """Monotonic start and duration (ns) of each slot's forward pass.

    GPU events measure only distances, so each start is the last one plus the distance to it. The
    distance is a float in milliseconds: after a long pause the host's clock is more precise.
    """

    REST_NS = 10_000_000_000

    def __init__(self) -> None:
        self._last: Slot | None = None
        self._start_ns = 0

    def read(self, slot: Slot) -> tuple[int, int, Slot | None]:
        """Start, duration, and the slot that may be reused, if any: the next start is measured from
        this one."""
        if slot.events is None:
            return slot.launched_ns, slot.returned_ns - slot.launched_ns, slot
        last, self._last = self._last, slot
        duration_ns = int(slot.events[0].elapsed_time(slot.events[1]) * 1e6)
        if last is None or slot.launched_ns - last.launched_ns > self.REST_NS:
            self._start_ns = slot.launched_ns
        else:
            assert last.events is not None
            self._start_ns += int(last.events[0].elapsed_time(slot.events[0]) * 1e6)
        return self._start_ns, duration_ns, last
