"""Does the interval of a power law's exponent hold the planted one? Layers whose tokens choose by a
power law, independently or with topics that drift from block to block; and fair layers, of which
few may show an exponent.

    uv run python bench/analysis/popularity.py [--runs 400]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from core.routing import popularity
from core.routing.popularity import Popularity
from core.stats.arrays import Floats

BLOCKS = 32
SIZES = ((8, 0.3), (8, 1.0), (64, 0.3), (64, 1.0), (256, 0.3), (256, 1.0))


@dataclass(frozen=True, slots=True)
class Case:
    """`tokens` choices a block; `drift`: the SD of a block's topic, on the log scale."""

    experts: int
    s: float
    tokens: int
    drift: float = 0.0
    blocks: int = BLOCKS


def counts(case: Case, draw: np.random.Generator) -> Floats:
    """[blocks, 1, experts]."""
    shares = draw.permutation(popularity.shares(case.s, case.experts))
    topics = np.exp(case.drift * draw.normal(size=(case.blocks, case.experts)))
    chance = shares * topics
    chance /= chance.sum(axis=1, keepdims=True)
    return np.asarray(draw.multinomial(case.tokens, chance)[:, None, :], float)


def truth(case: Case, blocks: int = 20_000) -> float:
    """The exponent of the shares over all topics."""
    if not case.drift:
        return case.s
    draw = np.random.default_rng(0)
    shares = popularity.shares(case.s, case.experts)
    chance = shares * np.exp(case.drift * draw.normal(size=(blocks, case.experts)))
    mean = (chance / chance.sum(axis=1, keepdims=True)).mean(axis=0)
    return popularity.exponent(float(case.experts * (mean**2).sum() - 1), case.experts)


def found(case: Case, runs: int) -> Iterator[Popularity]:
    for seed in range(runs):
        yield popularity.of_layers(counts(case, np.random.default_rng([seed, case.experts])))[0]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=400)
    runs = parser.parse_args().runs
    print(
        "| experts | planted s | choices a block | topics drift | told | holds it | mean | width |"
    )
    print("|---|---|---|---|---|---|---|---|")
    cases = [
        Case(experts, s, tokens, drift)
        for experts, s in SIZES
        for tokens, drift in ((300, 0.0), (30_000, 0.0), (30_000, 0.5))
    ]
    for case in cases:
        print(_row(case, runs), flush=True)
    print("\n| experts | choices a block | a fair layer shows an exponent |\n|---|---|---|")
    for experts in (8, 64, 256):
        for tokens in (300, 30_000):
            told = sum(p.power_law.value is not None for p in found(Case(experts, 0, tokens), runs))
            print(f"| {experts} | {tokens} | {told} of {runs} |", flush=True)


def _row(case: Case, runs: int) -> str:
    want = truth(case)
    laws = [p.power_law for p in found(case, runs)]
    told = [law for law in laws if law.value is not None and law.interval is not None]
    held = sum(law.interval[0] <= want <= law.interval[1] for law in told if law.interval)
    mean = np.mean([law.value for law in told]) if told else float("nan")
    width = np.median([law.interval[1] - law.interval[0] for law in told if law.interval] or [0])
    drift = f"by {case.drift:g}" if case.drift else "no"
    return (
        f"| {case.experts} | {want:.3f} | {case.tokens} | {drift} | {len(told)} of {runs} |"
        f" {held} of {len(told)} | {mean:.3f} | {width:.3f} |"
    )


if __name__ == "__main__":
    main()
