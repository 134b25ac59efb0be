"""When each forward pass ran, by the host's clock, though a GPU's own clock timed it."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .ring import Slot

REST_NS = 10_000_000_000
WINDOW_NS = 10_000_000_000
ENOUGH = 200  # readings of a window: by then one came within a fraction of a ms of its pass's end
SLEW = 1e-4  # of the time that passed: a GPU's clock drifts by a few millionths


class Clock:
    """Monotonic start and duration (ns) of each slot's forward pass.

    GPU events measure only distances, so passes are placed on the GPU's clock by the distance from
    start to start. After a rest the first one is placed where the host launched it: the distance
    is a float in milliseconds, and after a long pause the host's clock is more precise.

    A GPU's clock runs faster or slower than the host's, so what is added to it (`offset`) is
    corrected all the time. A pass starts after its launch and ends before its counts are seen, so
    launch - start <= offset <= seen - end. The writer looks every 20 ms while steps end at any
    time between: the least of many such upper bounds is close. Every 10 s the least of that window
    becomes what the offset moves to, by at most 0.1 ms a second, so that no start moves backwards;
    with too few readings the offset only moves to between the bounds.

    What remains of an error no longer grows: 0.2 ms early to 0.4 ms late on a busy server whose
    clock drifts by ten millionths (the count and its copy, the least wait for the writer's look,
    10 s of drift). Cost: a look at the host's clock and some sums a step, on the writer's thread;
    no event, wait or copy is added, and the engine's thread does nothing more.
    """

    def __init__(self) -> None:
        self._last: Slot | None = None
        self._gpu_ns = 0  # the last start by the GPU's clock, since the last rest
        self._offset_ns = self._target_ns = 0.0
        self._begin_window(0)

    def read(self, slot: Slot) -> tuple[int, int, Slot | None]:
        """Start, duration, and the slot that may be reused, if any: the next start is measured from
        this one. To be called as soon as the slot is done."""
        if slot.events is None:
            return slot.launched_ns, slot.returned_ns - slot.launched_ns, slot
        seen_ns = time.perf_counter_ns()
        last, self._last = self._last, slot
        duration_ns = round(slot.events[0].elapsed_time(slot.events[1]) * 1e6)
        if last is None or slot.launched_ns - last.launched_ns > REST_NS:
            self._gpu_ns, self._offset_ns = 0, float(slot.launched_ns)
            self._target_ns = self._offset_ns
            self._begin_window(seen_ns)
        else:
            assert last.events is not None
            passed_ns = round(last.events[0].elapsed_time(slot.events[0]) * 1e6)
            self._gpu_ns += passed_ns
            most = SLEW * passed_ns
            self._offset_ns += min(max(self._target_ns - self._offset_ns, -most), most)
        self._bound(slot.launched_ns - self._gpu_ns, seen_ns - self._gpu_ns - duration_ns)
        if seen_ns - self._began_ns >= WINDOW_NS:
            self._aim()
            self._begin_window(seen_ns)
        return self._gpu_ns + round(self._offset_ns), duration_ns, last

    def _begin_window(self, seen_ns: int) -> None:
        self._began_ns, self._readings = seen_ns, 0
        self._least_ns, self._most_ns = -sys.maxsize, sys.maxsize  # that the offset may be

    def _bound(self, least_ns: int, most_ns: int) -> None:
        self._readings += 1
        self._least_ns, self._most_ns = max(self._least_ns, least_ns), min(self._most_ns, most_ns)

    def _aim(self) -> None:
        if self._readings >= ENOUGH:
            self._target_ns = float(self._most_ns)
        else:
            self._target_ns = min(max(self._target_ns, self._least_ns), self._most_ns)
