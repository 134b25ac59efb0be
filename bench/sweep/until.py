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
        for starts in range(2, most + 1):
            side = {n: {"001": [float(np.exp(2.5 + moved[n]))]} for n in range(starts)}
            found = level.of_side(side, confidence)
            half = found.half_width_pct
            assert half is not None
            assert found.estimate.interval
            if half <= aim_pct:
                break
        low, high = found.estimate.interval
        rows.append((low <= truth <= high, half is not None and half <= aim_pct, starts))
    return Outcome(*np.mean(rows, axis=0))


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
