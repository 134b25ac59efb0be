"""How far the recorder's stamps of forward passes are off on a GPU, against what the GPU's clock
alone would say.

    PYTHONPATH=core/recorder python3 bench/recorder/clock_drift.py SECONDS

Passes of about 14 ms run back to back, launched one ahead, through the recorder's own slots; a
thread reads them every 20 ms, as the recorder's does. Every 5 s the GPU is left idle: the next pass
starts within some microseconds of its launch, so its stamp can be judged. Needs PyTorch and a GPU.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections import deque

import torch
from gatescope_recorder.clock import Clock
from gatescope_recorder.ring import Ring, Slot

PASS_CYCLES = 27_000_000
IDLE_EVERY_S = 5.0
Judged = tuple[float, float, float]  # s since the start; µs late: stamp, the GPU's clock alone


class Reader:
    """The recorder's second thread."""

    def __init__(self, ring: Ring) -> None:
        self.ring, self.clock = ring, Clock()
        self.queue: deque[tuple[Slot, bool]] = deque()
        self.judged: list[Judged] = []
        self.backwards = 0
        self.is_over = False

    def run(self) -> None:
        alone = first = last_start = 0
        while not self.is_over or self.queue:
            time.sleep(0.02)
            while self.queue and self.queue[0][0].is_done:
                slot, was_idle = self.queue.popleft()
                start, _, free = self.clock.read(slot)
                if free is None:
                    alone = first = slot.launched_ns
                elif free.events and slot.events:
                    alone += round(free.events[0].elapsed_time(slot.events[0]) * 1e6)
                    self.ring.give(free)
                self.backwards += start < last_start
                last_start = start
                if was_idle:
                    launched = slot.launched_ns
                    self.judged.append(
                        (
                            (launched - first) / 1e9,
                            (start - launched) / 1e3,
                            (alone - launched) / 1e3,
                        )
                    )


def main(seconds: float) -> None:
    reader = Reader(Ring(512, 1, 8, cuda=True))
    thread = threading.Thread(target=reader.run)
    thread.start()
    until, idle_at = time.monotonic() + seconds, 0.0
    ahead: deque[Slot] = deque()
    while time.monotonic() < until:
        is_idle = time.monotonic() >= idle_at
        if is_idle:
            torch.cuda.synchronize()
            time.sleep(0.005)
            idle_at = time.monotonic() + IDLE_EVERY_S
        slot = reader.ring.take()
        assert slot is not None
        slot.start()
        torch.cuda._sleep(PASS_CYCLES)
        slot.end()
        slot.copied()
        reader.queue.append((slot, is_idle))
        ahead.append(slot)
        if len(ahead) > 1 and (events := ahead.popleft().events):
            events[1].synchronize()
    reader.is_over = True
    thread.join()
    print(f"{torch.cuda.get_device_name()}; {reader.backwards} starts moved backwards")
    print("   s   stamp, µs late   the GPU's clock alone, µs late")
    for at, late, alone in reader.judged[:: max(1, len(reader.judged) // 15)]:
        print(f"{at:5.0f} {late:12.0f} {alone:20.0f}")
    settled = [stamp for at, stamp, _ in reader.judged if at > 20]
    if len(settled) > 1:
        at, _, alone = reader.judged[-1]
        print(
            f"after 20 s: {min(settled):.0f} to {max(settled):.0f} µs late, median"
            f" {statistics.median(settled):.0f};"
            f" the GPU's clock drifts by {alone / at:.2f} µs a second"
        )


if __name__ == "__main__":
    main(float(sys.argv[1]))
