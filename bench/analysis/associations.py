"""How often the tests of an association call out: unrelated metrics, straight lines and a U.

    uv run python bench/analysis/associations.py [--repeats 200] [--only tests|verdicts]

Each case draws six metrics over n datasets in seeded repeats, and two comparisons of backends by
three server starts each, whose true difference is the margin, so that any verdict is false. "found"
counts the repeats in which anything is found after Holm's correction over all of these: both tests
of each association, and the verdicts. Skew is drawn as excess CV² of our datasets is: most near 0,
a few high. A line or a U is in the first metric alone, and explains half of its variance. Aim:
found in 5 ± 2 % at most where nothing is related.

Then the verdict on one association alone: a metric that changes by a known share of its typical
value over the span of excess CV², in a straight line, with noise of a known share. At the margin,
*larger* and *equivalent* are both false. Aim: each in 5 ± 2 % at most there.
"""

from __future__ import annotations

import argparse
import itertools
from typing import Literal

import numpy as np

from core.analysis import findings
from core.stats import association, comparison
from core.stats.arrays import Floats
from core.stats.starts import Means

Kind = Literal["none", "line", "U"]
METRICS = 6  # three at each of two backends
COMPARED, STARTS, RESTART, MARGIN = 2, 3, 0.013, 0.02


VERDICTS = ("larger", "equivalent", "bends", "inconclusive")
CHANGES, NOISES = (0.0, MARGIN, 4 * MARGIN), (0.005, 0.02)  # shares of the typical value


def skews(n: int, rng: np.random.Generator) -> Floats:
    high: Floats = rng.choice([0, 0.3], n, p=[0.8, 0.2]) * rng.random(n)
    return np.abs(rng.normal(0, 0.05, n)) + high


def drawn(kind: Kind, n: int, rng: np.random.Generator) -> tuple[Floats, list[Floats]]:
    x = skews(n, rng)
    ranks = np.argsort(np.argsort(x)) / n - 0.5
    noise = [rng.normal(size=n) for _ in range(METRICS)]
    signal = {"none": np.zeros(n), "line": ranks, "U": np.abs(ranks)}[kind]
    scale = signal.std() or 1.0
    return x, [signal / scale + noise[0], *noise[1:]]


def found(kind: Kind, n: int, seed: int) -> tuple[bool, bool]:
    """Whether anything is found where nothing is related, else the association: by either test,
    and by Spearman's alone."""
    rng = np.random.default_rng(seed)
    x, metrics = drawn(kind, n, rng)
    ps = [association.p_values(x, y, seed) for y in metrics]
    verdicts = [_verdict(rng) for _ in range(COMPARED)]
    both = association.holm([*(p for p, _ in ps), *(p for _, p in ps), *verdicts])
    alone = association.holm([*(p for p, _ in ps), *verdicts])
    if kind == "none":
        return _any(both), _any(alone)
    return _any([both[0], both[METRICS]]), _any(alone[:1])


def _verdict(rng: np.random.Generator) -> float:
    """The p of the verdict on two backends whose difference is the margin."""
    before, after = rng.normal(0, RESTART, (2, STARTS))
    means = Means(before, after + MARGIN, paired=False, datasets=1)
    return comparison.judge(means, MARGIN)[1]


def _any(ps: list[float | None]) -> bool:
    return any(p is not None and p < association.ALPHA for p in ps)


def rates(kind: Kind, n: int, repeats: int) -> tuple[float, float]:
    """The shares of `repeats` in which an association is found, by either test and by Spearman's
    alone."""
    seen = np.array([found(kind, n, seed) for seed in range(repeats)])
    return float(seen[:, 0].mean()), float(seen[:, 1].mean())


def verdict_on(change: float, noise: float, n: int, seed: int) -> str:
    """The verdict on a metric around 100 that changes by this share of it over the span."""
    rng = np.random.default_rng(seed)
    x = skews(n, rng)
    low, high = np.percentile(x, findings.MIDDLE)
    y = 100 * (1 + change * x / (high - low) + rng.normal(0, noise, n))
    found = association.associate(x, y, seed=seed)
    row = findings.Row(
        backend="a",
        metric="mean_tpot_ms",
        association=found,
        without=found,
        span=float(high - low),
        typical=100.0,
        margin_pct=100 * MARGIN,
    )
    return row.verdict


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--only", choices=("tests", "verdicts"))
    a = parser.parse_args()
    if a.only != "verdicts":
        _print_tests(a.repeats)
    if a.only != "tests":
        _print_verdicts(a.repeats)


def _print_tests(repeats: int) -> None:
    print(f"{'truth':<8}{'n':>4}{'found':>8}{'by Spearman alone':>20}")
    kinds: tuple[Kind, ...] = ("none", "line", "U")
    for kind in kinds:
        for n in (25, 50):
            either, alone = rates(kind, n, repeats)
            print(f"{kind:<8}{n:>4}{either:>8.1%}{alone:>20.1%}", flush=True)


def _print_verdicts(repeats: int) -> None:
    print("".join(f"{head:>14}" for head in ("change", "noise", "n", *VERDICTS)))
    for change, noise, n in itertools.product(CHANGES, NOISES, (25, 50)):
        said = [verdict_on(change, noise, n, seed) for seed in range(repeats)]
        shares = "".join(f"{said.count(one) / repeats:>14.1%}" for one in VERDICTS)
        print(f"{change:>14.1%}{noise:>14.1%}{n:>14}{shares}", flush=True)


if __name__ == "__main__":
    main()
