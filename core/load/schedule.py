"""The times at which requests are due."""

from __future__ import annotations

import math
import random
from typing import Literal

Rate = float | Literal["inf"]
Arrival = Literal["poisson", "constant"]


def arrivals(
    count: int,
    rate: Rate,
    seed: int,
    *,
    arrival: Arrival = "poisson",
    burstiness: float = 1.0,
    ramp_up_s: float = 0.0,
    slots: int = 0,
) -> list[float]:
    """Seconds after the start at which each request is due, ascending, seeded.

    Rate "inf": all at once; with a ramp-up, the first `slots` (0: all) spread evenly over it. A
    number: intervals drawn from a gamma distribution of mean 1/rate and shape `burstiness` (1:
    Poisson; less: burstier), or constant; over the ramp-up the rate grows linearly from 0.
    """
    if rate == "inf":
        return [ramp_up_s * min(1.0, i / (slots or count)) for i in range(count)]
    draw = random.Random(seed)
    due, at = [], 0.0
    for _ in range(count):
        due.append(_ramped(at, ramp_up_s))
        at += (
            1 / rate
            if arrival == "constant"
            else draw.gammavariate(burstiness, 1 / (rate * burstiness))
        )
    return due


def _ramped(at: float, ramp_s: float) -> float:
    """When a linear ramp has sent what the full rate sends in `at` seconds.

    A ramp of T seconds has sent t²/2T at t ≤ T, and t - T/2 after it; this is the inverse.
    """
    return math.sqrt(2 * ramp_s * at) if at < ramp_s / 2 else at + ramp_s / 2
