"""What a load worker's progress report costs: with the TTFTs and gaps that it carries, and without.

    uv run python bench/client/progress.py

A report is made once a second, off the path of a token; while it is made no socket is read, and the
kernel's stamps stay what they are. The two take turns.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from array import array
from pathlib import Path
from unittest.mock import Mock

sys.path.insert(0, str(Path(__file__).parents[2]))
from core.load import pipe
from core.load.pipe import Advanced, Job, Row
from core.load.record import Progress
from core.load.worker import Request, Worker

ROUNDS = 200
EVENTS = 100  # tokens per request and second
ITL_NS = 10_000_000


def worker(requests: int) -> Worker:
    job = Job("http://127.0.0.1:1", [], [], requests, False, 0, 60.0, 50, 1 << 20)
    made = Worker(job, Mock())
    for index in range(requests):
        request = Request(Row(index, "", "", 0, b""), b"", 50)
        request.times.sent = 1
        made._active.add(request)
    return made


def arrive(made: Worker) -> None:
    """A second's tokens."""
    for request in made._active:
        stamps = request.stream.stamps
        first = stamps[-1] if stamps else 1
        new = array("q", range(first + ITL_NS, first + (EVENTS + 1) * ITL_NS, ITL_NS))
        request.stream.stamps = stamps[-1:] + new  # no longer than one second's
        request.reported = 1 if stamps else 0


def took_us(made: Worker, *, notes: bool) -> tuple[float, int]:
    """Microseconds of CPU for one report, and its bytes."""
    began = time.thread_time_ns()
    progress = made._progress() if notes else bare(made)
    frame = pipe.frame(Advanced(progress))
    return (time.thread_time_ns() - began) / 1e3, len(frame)


def bare(made: Worker) -> Progress:
    """The counts alone."""
    live = made._active
    return Progress(
        sent=sum(r.times.sent > 0 for r in live),
        first_tokens=sum(bool(r.stream.stamps) for r in live),
        output_tokens=sum(r.stream.received for r in live),
    )


def main() -> None:
    print("requests  report with arrivals, µs  p99  without, µs  bytes  share of a second")
    for requests in (16, 64, 256, 1000):
        made = worker(requests)
        gc.collect()
        gc.disable()  # as in a worker
        with_, without, size = [], [], 0
        for _ in range(ROUNDS):
            arrive(made)
            took, size = took_us(made, notes=True)
            with_.append(took)
            without.append(took_us(made, notes=False)[0])
        middle, worst = statistics.median(with_), sorted(with_)[int(0.99 * ROUNDS)]
        share = (middle - statistics.median(without)) / 1e6
        print(
            f"{requests:>8}  {middle:>24.0f}  {worst:>3.0f}  {statistics.median(without):>11.0f}"
            f"  {size:>5}  {share:.3%}"
        )


if __name__ == "__main__":
    main()
