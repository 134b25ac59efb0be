"""How often the interval of a searched limit holds the true one, by simulation: a request meets the
objective with a chance that falls with the load, and the limit is where that chance is the share. A
restart moves the limit of its start.

    uv run python -m bench.sweep.limit
"""

from __future__ import annotations

import argparse
import math
from typing import NamedTuple

import numpy as np

from core.analysis import limits
from core.analysis.limits import Part, Point
from core.experiment import search
from core.experiment.search import Search

TRUTH = 23.7
ASKED = Search(over="request_rate", slo={"ttft_ms": 1.0}, share=0.9, high=256, resolution_pct=5)


class Outcome(NamedTuple):
    """Shares of searches whose interval held the truth, and which had both ends; medians of answer
    / truth, of the interval's ends' ratio, and of the points that it took at all starts."""

    held: float
    both: float
    ratio: float
    width: float
    points: float


def chance(load: float, steepness: float, truth: float = TRUTH) -> float:
    """Of a request to meet the objective: ASKED.share at `truth`, falling as a logistic of the
    load's logarithm."""
    offset = math.log(ASKED.share / (1 - ASKED.share))
    return 1 / (1 + math.exp(min(500.0, steepness * math.log(load / truth) - offset)))


def simulate(
    steepness: float, requests: int, starts: int, restart: float, repeats: int, seed: int = 0
) -> Outcome:
    """`restart`: SD of the logarithm of a start's limit about TRUTH."""
    rng = np.random.default_rng(seed)
    rows = [_search(rng, steepness, requests, starts, restart) for _ in range(repeats)]
    held, both, ratio, width, points = zip(*rows, strict=True)
    shares = (float(np.mean(held)), float(np.mean(both)))
    return Outcome(*shares, *(float(np.nanmedian(own)) for own in (ratio, width, points)))


def _search(
    rng: np.random.Generator, steepness: float, requests: int, starts: int, restart: float
) -> tuple[bool, bool, float, float, int]:
    parts: dict[float, list[Part]] = {}
    begin = None
    for start in range(1, starts + 1):
        truth = TRUTH * math.exp(rng.normal(0, restart))
        met: dict[float, bool] = {}
        while (load := search.next_load(ASKED, met, begin)) is not None:
            part = _part(rng, start, chance(load, steepness, truth), requests)
            parts.setdefault(load, []).append(part)
            met[load] = part.meets(ASKED.share)
        begin = begin or search.begin_again(ASKED, met)
    points = [Point(load=load, parts=parts[load]) for load in sorted(parts)]
    found = limits.answer(points, ASKED)
    low, high = found.low, found.high
    held = (low is None or low <= TRUTH) and (high is None or high >= TRUTH)
    width = high / low if low and high else math.nan
    ratio = (found.value or math.nan) / TRUTH
    return held, width == width, ratio, width, sum(len(one.parts) for one in points)


def _part(rng: np.random.Generator, start: int, good: float, requests: int) -> Part:
    """A start of a point, which ends once so many have missed the objective that the others cannot
    change it."""
    missed = np.flatnonzero(rng.random(requests) >= good)
    allowed = search.allowed_misses(ASKED.share, requests)
    if len(missed) <= allowed:
        return Part(start=start, good=requests - len(missed), requests=requests)
    sent = int(missed[allowed]) + 1
    return Part(start=start, good=sent - allowed - 1, requests=sent, ended_early=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeats", type=int, default=500)
    repeats = parser.parse_args().repeats
    head = (
        "steepness",
        "requests",
        "restart",
        "starts",
        "held",
        "both",
        "ratio",
        "width",
        "points",
    )
    print("".join(f"{name:>10}" for name in head))
    for steepness in (4.0, 20.0):
        for requests in (60, 200):
            for restart in (0.0, 0.013, 0.05):
                for starts in (1, 2, 3, 5):
                    found = simulate(steepness, requests, starts, restart, repeats)
                    asked = f"{steepness:>10g}{requests:>10}{100 * restart:>9.1f}%{starts:>10}"
                    shares = f"{100 * found.held:>9.1f}%{100 * found.both:>9.1f}%"
                    rest = f"{found.ratio:>10.2f}{found.width:>10.2f}{found.points:>10.0f}"
                    print(f"{asked}{shares}{rest}", flush=True)


if __name__ == "__main__":
    main()
