"""How often two backends are called larger, equivalent or inconclusive, by their true difference.

    uv run python bench/analysis/equivalence.py [--repeats 1000]

Aim: at most 5 % of experiments call a true difference at or above the margin equivalent, and at
most 5 % one at or below it larger. The margin is 2 %; a start's mean moves by an SD of 1.3, 0.5 or
0 % from start to start, beside the runs' noise (coverage.py's experiments).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.analysis.coverage import started
from core.stats import comparison
from core.stats.starts import Side

MARGIN_PCT = 2.0
EFFECTS = (0.0, 1.0, 2.0, -2.0, 3.0, 5.0)  # %; true
DESIGNS = [(starts, split) for starts in (2, 3, 5, 10) for split in (False, True)]
RESTARTS = (0.0, 0.005, 0.013)


def shares(
    effect: float, starts: int, restart: float, split: bool, repeats: int
) -> dict[str, float]:
    """Verdict → share of simulated experiments. At -2 % the ratio is 1/1.02."""
    factor = 1 + effect / 100 if effect >= 0 else 1 / (1 - effect / 100)
    counts: Counter[str] = Counter()
    for seed in range(repeats):
        before, after = started(seed, starts, restart, split)
        counts[judged(before, scaled(after, factor / 1.18))] += 1
    return {verdict: counts[verdict] / repeats for verdict in ("larger", "equivalent")}


def judged(before: Side, after: Side) -> str:
    return comparison.compare("mean_tpot_ms", "a", "b", (before, after), MARGIN_PCT).verdict


def scaled(side: Side, factor: float) -> Side:
    return {s: {d: [factor * v for v in run] for d, run in own.items()} for s, own in side.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=1000)
    repeats = parser.parse_args().repeats
    print(f"{'design':<18} {'SD':>5} {'true':>6} {'larger':>8} {'equivalent':>11}   false")
    worst = 0.0
    for starts, split in DESIGNS:
        for restart in RESTARTS:
            for effect in EFFECTS:
                found = shares(effect, starts, restart, split, repeats)
                wrong = [
                    *([found["larger"]] if abs(effect) <= MARGIN_PCT else []),
                    *([found["equivalent"]] if abs(effect) >= MARGIN_PCT else []),
                ]
                worst = max(worst, *wrong)
                name = f"{starts} starts{', split' if split else ''}"
                row = f"{found['larger']:>8.1%} {found['equivalent']:>11.1%}   {max(wrong):.1%}"
                print(f"{name:<18} {restart:>5.1%} {effect:>+6.1f} {row}")
    chance = 2 * math.sqrt(0.05 * 0.95 / repeats)
    print(f"worst false verdict {worst:.1%} (aim 5 %, two standard errors of chance {chance:.1%})")


if __name__ == "__main__":
    main()
