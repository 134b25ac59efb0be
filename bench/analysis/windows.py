"""Sums of slices, joined to a window as `gatescope watch` does: how often is an excess CV shown of
a fair router, which has none? By layer, against the same steps summed as one stretch.

    uv run python bench/analysis/windows.py [--runs 100]

Steps are new draws of a fair router; or a few draws that come again and again, as when greedy
answers loop.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from core.routing import layers, work
from core.routing.gatelog import GateLog
from core.routing.layers import Totals
from core.routing.recurrence import Recurrence

LAYERS, EXPERTS, TOP_K, TOKENS = 4, 32, 2, 32
CASES = {"new draws": 0, "32 draws that repeat": 32, "8 draws that repeat": 8}


def fair(steps: int, draw: np.random.Generator) -> GateLog:
    """Every token chooses distinct experts, all equally probable."""
    pool = work.fair_loads(TOKENS, EXPERTS, TOP_K, 20_000)
    loads = pool[draw.integers(0, len(pool), (steps, LAYERS))]
    columns = {"tokens": np.full(steps, TOKENS), "duration_ns": np.ones(steps, np.int64)}
    return GateLog(loads, columns, {}, TOP_K)


def shown(steps: int, slices: int, repeat: int, runs: int) -> tuple[float, float]:
    """The share of layers of which an excess is shown: joined, and as one stretch."""
    counts = np.zeros(2)
    for seed in range(runs):
        log = fair(repeat or steps, np.random.default_rng([seed, repeat]))
        log = log if not repeat else again(log, steps)
        shared = Recurrence(LAYERS, EXPERTS)
        whole, parts = Totals(), [Totals(recurrence=shared) for _ in range(slices)]
        whole.add(log)
        for n, part in enumerate(parts):
            part.add(log.where(np.arange(steps) * slices // steps == n))
        for place, totals in enumerate((layers.joined(parts), whole)):
            counts[place] += sum(layer.excess is not None for layer in totals.layers())
    joined, one = counts / (runs * LAYERS)
    return float(joined), float(one)


def again(log: GateLog, steps: int) -> GateLog:
    """The same steps over and over."""
    place = np.arange(steps) % len(log.tokens)
    columns = {name: values[place] for name, values in log.columns.items()}
    return GateLog(log.loads[place], columns, {}, log.top_k)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=100)
    runs = parser.parse_args().runs
    print(
        "| steps | slices | traffic | shown, joined | shown, one stretch |\n|---|---|---|---|---|"
    )
    for steps, slices in ((60, 3), (900, 3), (3600, 180)):
        for name, repeat in CASES.items():
            joined, one = shown(steps, slices, repeat, runs)
            print(f"| {steps} | {slices} | {name} | {joined:.1%} | {one:.1%} |", flush=True)


if __name__ == "__main__":
    main()
