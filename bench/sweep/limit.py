"""How often the interval of a searched limit holds the true one, by simulation: a request meets the
objective with a chance that falls with the load, and the limit is where that chance is the share.

    uv run python -m bench.sweep.limit
"""

from __future__ import annotations

import argparse
import math
from typing import NamedTuple

import numpy as np

from core.analysis import limits
from core.analysis.limits import Point
from core.experiment import search
from core.experiment.search import Search

TRUTH = 23.7
ASKED = Search(over="request_rate", slo={"ttft_ms": 1.0}, share=0.9, high=256, resolution_pct=5)


class Outcome(NamedTuple):
    """Shares of searches whose interval held the truth, and which had both ends; the median of
    answer / truth, and of the points that it took."""

    held: float
    both: float
    ratio: float
    points: float


def chance(load: float, steepness: float) -> float:
    """Of a request to meet the objective: ASKED.share at TRUTH, falling as a logistic of the
    load's logarithm."""
    offset = math.log(ASKED.share / (1 - ASKED.share))
    return 1 / (1 + math.exp(steepness * math.log(load / TRUTH) - offset))


def simulate(steepness: float, requests: int, repeats: int, seed: int = 0) -> Outcome:
    rng = np.random.default_rng(seed)
    return Outcome(*_summed([_search(rng, steepness, requests) for _ in range(repeats)]))


def _search(
    rng: np.random.Generator, steepness: float, requests: int
) -> tuple[bool, bool, float, int]:
    points: list[Point] = []
    while True:
        met = {one.load: one.share >= ASKED.share for one in points}
        load = search.next_load(ASKED, met)
        if load is None:
            break
        good = int(rng.binomial(requests, chance(load, steepness)))
        points.append(Point(load=load, good=good, requests=requests, starts=1))
    low, high = limits.ends(points, ASKED.share)
    value, _ = search.bracket(met)
    held = (low is None or low <= TRUTH) and (high is None or high >= TRUTH)
    return held, low is not None and high is not None, (value or math.nan) / TRUTH, len(points)


def _summed(rows: list[tuple[bool, bool, float, int]]) -> list[float]:
    held, both, ratio, points = zip(*rows, strict=True)
    means = [float(np.mean(shares)) for shares in (held, both)]
    return [*means, float(np.nanmedian(ratio)), float(np.median(points))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeats", type=int, default=500)
    repeats = parser.parse_args().repeats
    print(f"{'steepness':>10}{'requests':>10}{'held':>8}{'both ends':>11}{'ratio':>7}{'points':>8}")
    for steepness in (4.0, 20.0):
        for requests in (60, 200, 1000):
            found = simulate(steepness, requests, repeats)
            shares = f"{100 * found.held:>7.1f}%{100 * found.both:>10.1f}%"
            print(f"{steepness:>10g}{requests:>10}{shares}{found.ratio:>7.2f}{found.points:>8.0f}")


if __name__ == "__main__":
    main()
