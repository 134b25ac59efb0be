"""How often the interval of a cell that was given starts until it was narrow holds the truth, by
simulation: restarts of some SD, noise of a run 3 %, ten datasets, up to six starts, aim 2 %.

    uv run python -m bench.sweep.until
"""

from __future__ import annotations

import argparse
import math
from typing import NamedTuple

import numpy as np

from core.stats import level

DATASETS, NOISE = 10, 0.03


class Outcome(NamedTuple):
    """Shares of cells: whose interval held, and who stopped before the most starts; and the mean of
    their starts."""

    held: float
    known: float
    starts: float


def simulate(
    restart: float, repeats: int, most: int = 6, aim_pct: float = 2.0, seed: int = 0
) -> Outcome:
    rng = np.random.default_rng(seed)
    confidence = 1 - (1 - level.LEVEL) / (most - 1)  # as core.analysis.cells.known_level
    truth = math.exp(2.5)
    rows = []
    for _ in range(repeats):
        moved = rng.normal(0, math.hypot(restart, NOISE / math.sqrt(DATASETS)), most)
        starts, low, high, is_known = _given(moved, confidence, aim_pct)
        rows.append((low <= truth <= high, is_known, starts))
    return Outcome(*np.mean(rows, axis=0))


def _given(
    moved: np.ndarray[tuple[int], np.dtype[np.float64]], confidence: float, aim_pct: float
) -> tuple[int, float, float, bool]:
    """The starts that a cell is given, the ends of its interval then, and whether it is narrow."""
    for starts in range(2, len(moved) + 1):
        side = {n: {"001": [float(np.exp(2.5 + moved[n]))]} for n in range(starts)}
        found = level.of_side(side, confidence)
        assert found.estimate.interval
        is_known = (found.half_width_pct or 0) <= aim_pct
        if is_known or starts == len(moved):
            return starts, *found.estimate.interval, is_known
    raise AssertionError("a cell has two starts or more")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeats", type=int, default=2000)
    print(f"{'restart SD':>11}{'most':>6}{'held':>8}{'known':>8}{'starts':>8}")
    for most in (4, 6, 10):
        for restart in (0.0, 0.002, 0.005, 0.013):
            found = simulate(restart, parser.parse_args().repeats, most)
            shares = f"{100 * found.held:>7.1f}%{100 * found.known:>7.1f}%"
            print(f"{100 * restart:>10.1f}%{most:>6}{shares}{found.starts:>8.1f}", flush=True)


if __name__ == "__main__":
    main()
