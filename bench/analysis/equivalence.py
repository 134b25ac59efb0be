"""How often two backends are called larger, equivalent or inconclusive, by their true difference.

    uv run python bench/analysis/equivalence.py [--repeats 1000] [--starts 10 --restart 0.1]

Aim: at most 5 % of experiments call a true difference at or above the margin equivalent, and at
most 5 % one at or below it larger. The margin is 2 %; a start's mean moves by an SD of 1.3, 0.5 or
0 % from start to start, beside the runs' noise (coverage.py's experiments); by 10 % on a machine
that is busy with other work.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.analysis.coverage import started
from core.stats import comparison, starts
from core.stats.starts import Side

MARGIN_PCT = 2.0
EFFECTS = (0.0, 2.0, -2.0, 5.0)  # %; true
DESIGNS = [(2, False), (3, False), (3, True), (5, False), (5, True), (10, False)]
RESTARTS = (0.0, 0.005, 0.013, 0.1)
Design = tuple[int, bool]


def shares(effect: float, design: Design, restart: float, repeats: int) -> dict[str, float]:
    """Verdict → share of simulated experiments. At -2 % the ratio is 1/1.02."""
    starts_of_each, split = design
    factor = math.copysign(math.log1p(abs(effect) / 100), effect) - math.log(1.18)
    counts: Counter[str] = Counter()
    for seed in range(repeats):
        own = seed + repeats * (EFFECTS.index(effect) + len(EFFECTS) * RESTARTS.index(restart))
        counts[judged(started(own, starts_of_each, restart, split), factor)] += 1
    return {verdict: counts[verdict] / repeats for verdict in ("larger", "equivalent")}


def judged(sides: list[Side], shift: float) -> str:
    """The verdict where the other backend's logarithms are `shift` higher."""
    before, after = (comparison.logarithms(side) for side in sides)
    means = starts.means(before, after)
    assert means
    shifted = replace(means, after=means.after + shift)
    return comparison.judge(shifted, math.log1p(MARGIN_PCT / 100))[0]


def false_verdicts(effect: float, found: dict[str, float]) -> float:
    """The share that says what is not so."""
    wrong = [
        *([found["larger"]] if abs(effect) <= MARGIN_PCT else []),
        *([found["equivalent"]] if abs(effect) >= MARGIN_PCT else []),
    ]
    return max(wrong)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--starts", type=int, help="only designs of as many starts")
    parser.add_argument("--restart", type=float, choices=RESTARTS, help="only this SD")
    a = parser.parse_args()
    repeats = a.repeats
    designs = [design for design in DESIGNS if a.starts in (None, design[0])]
    restarts = RESTARTS if a.restart is None else (a.restart,)
    print(f"{'design':<18} {'SD':>5} {'true':>6} {'larger':>8} {'equivalent':>11}   false")
    wrong = []
    for design in designs:
        for restart in restarts:
            for effect in EFFECTS:
                found = shares(effect, design, restart, repeats)
                false = false_verdicts(effect, found)
                wrong.append(false)
                name = f"{design[0]} starts{', split' if design[1] else ''}"
                row = f"{found['larger']:>8.1%} {found['equivalent']:>11.1%}   {false:.1%}"
                print(f"{name:<18} {restart:>5.1%} {effect:>+6.1f} {row}", flush=True)
    chance = 2 * math.sqrt(0.05 * 0.95 / repeats)
    print(f"worst false verdict {max(wrong):.1%}: aim 5 %, two standard errors {chance:.1%}")


if __name__ == "__main__":
    main()
