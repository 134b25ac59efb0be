"""When requests are due."""

from __future__ import annotations

import random
from typing import Literal


def arrivals(count: int, rate: float | Literal["inf"], seed: int) -> list[float]:
    """Seconds after the start at which each request is due: all at once, or Poisson at `rate` per second, seeded."""
    if rate == "inf":
        return [0.0] * count
    draw = random.Random(seed)
    due, now = [], 0.0
    for _ in range(count):
        due.append(now)
        now += draw.expovariate(rate)
    return due
