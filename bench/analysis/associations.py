"""How often the findings about skew are false, how often they see what is there, and whether the
number of datasets that they name settles them.

    uv run python bench/analysis/associations.py [--repeats 400] [--sizes 25 50]
        [--only tests|verdicts|settling] [--truths line U] [--shuffles N]

Metrics around 100 over n datasets, in seeded repeats. Skew is drawn as excess CV² of our datasets
is: most near 0, a few high. The rules are those of the findings: every row is made and judged as
there.

tests: six metrics (three at each of two backends), and two comparisons of backends by three server
starts each whose true difference is the margin. Holm's correction is over all of these. Where
something is planted, it explains half of the variance of one of the six; but for *below* and
*above*, where all six change by the margin over the span of skew (noise of 0.5 %).
*found*: anything where nothing is planted; *larger* anywhere for *below*, as if the truth were just
below the margin, *equivalent* anywhere for *above*; else that the planted metric goes with skew.
*word*: that it is said to rise or fall if it is a line, to bend if it is a U.
The three tests by themselves are at 5 %, without any correction.
Aim: found in 5 ± 2 % at most where nothing is, or at the margin.

verdicts: one association alone, whose metric changes by a known share of its typical value over the
span of skew: in a straight line, or in a U from the middle of the span to its ends. At the margin,
*larger* and *equivalent* are both false; of a U so is *equivalent* wherever it reaches the margin.
Aim: each in 5 ± 2 % at most there.

settling: of pilots whose verdict is *inconclusive* and that name at most 400 datasets, how many
fresh experiments of as many datasets, whose change is as the pilot measured it, have a verdict. At
5 %, and at the level that 14 tests in a family may leave. Aim: about 80 %.

`--shuffles 999` is quicker; where Holm's correction leaves 0.4 % a test, it is too few.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from typing import Literal
from unittest.mock import patch

import msgspec
import numpy as np

from core.analysis import findings
from core.analysis.findings import Row
from core.stats import association, comparison, dependence, estimate, power
from core.stats.arrays import Floats
from core.stats.starts import Means

Shape = Literal["none", "below", "above", "line", "U"]
SHAPES: tuple[Shape, ...] = ("none", "below", "above", "line", "U")
SIZES = (25, 50)
METRICS = 6  # three at each of two backends
COMPARED, STARTS, RESTART, MARGIN = 2, 3, 0.013, 0.02
FAMILY = 2 * METRICS + COMPARED  # tests
VERDICTS = ("larger", "equivalent", "bends", "inconclusive")
CHANGES, NOISES = (0.0, MARGIN, 4 * MARGIN), (0.005, 0.02)  # shares of the typical value
MOST = 400  # datasets that are simulated


def skews(n: int, rng: np.random.Generator) -> Floats:
    high: Floats = rng.choice([0, 0.3], n, p=[0.8, 0.2]) * rng.random(n)
    return np.abs(rng.normal(0, 0.05, n)) + high


def span(x: Floats) -> float:
    return float(np.ptp(np.percentile(x, findings.MIDDLE)))


def line(x: Floats, change: float, noise: float, rng: np.random.Generator) -> Floats:
    """Metrics around 100 that rise by the share `change` over the span."""
    return 100 * (1 + change * x / span(x) + rng.normal(0, noise, len(x)))


def shape(kind: Shape, x: Floats) -> Floats:
    """Over the ranks of x, with an SD of 1; zeros where nothing is planted."""
    ranks = np.argsort(np.argsort(x)) / len(x) - 0.5
    signal = {"line": ranks, "U": np.abs(ranks)}.get(kind, np.zeros(len(x)))
    return signal / (signal.std() or 1.0)


def row(x: Floats, y: Floats, seed: int, *, is_pilot: bool = False) -> Row:
    """As the findings make it, less the estimates that only a pilot, or no verdict needs."""
    null = estimate.none("not estimated")
    typical = float(np.median(y))
    judged, p = findings.judge(x, y, MARGIN * typical, span(x))
    found = association.Association(
        n=len(x),
        spearman=null,
        pearson=null,
        slope=association.slope(x, y) if is_pilot else null,
        explained=null,
        partial=null,
        tests=dependence.between(x, y, seed),
    )
    return Row(
        backend="a",
        metric="mean_tpot_ms",
        association=found,
        without=found,
        span=span(x),
        typical=typical,
        turn=association.slope(association.folded(x), y) if is_pilot else null,
        margin_pct=100 * MARGIN,
        judged=judged,
        p_verdict=p,
    )


# --- Tests ---


def drawn(kind: Shape, n: int, rng: np.random.Generator) -> tuple[Floats, list[Floats]]:
    x = skews(n, rng)
    if kind in ("below", "above"):
        return x, [line(x, MARGIN, 0.005, rng) for _ in range(METRICS)]
    noise = [rng.normal(size=n) for _ in range(METRICS)]
    return x, [100 + 2 * y for y in (shape(kind, x) + noise[0], *noise[1:])]


def seen(kind: Shape, n: int, seed: int) -> list[bool]:
    """found, word, and whether each test sees it by itself."""
    rng = np.random.default_rng(seed)
    x, metrics = drawn(kind, n, rng)
    rows, pairs = findings.corrected(
        [row(x, y, seed) for y in metrics], [_compared(rng) for _ in range(COMPARED)], None
    )
    statistics = dependence.shuffled(x, metrics[0], seed)
    alone = (statistics >= statistics[:, :1]).mean(axis=1) < association.ALPHA
    return [*_found(kind, rows, pairs), *alone]


def _found(
    kind: Shape, rows: Sequence[Row], pairs: Sequence[comparison.Comparison]
) -> tuple[bool, bool]:
    first = rows[0].association
    said = [*(row.verdict for row in rows), *(pair.verdict for pair in pairs)]
    match kind:
        case "none":
            known = {"larger"} & {*said} or any(row.association.is_seen for row in rows)
            return bool(known), False
        case "below":
            return "larger" in said, False
        case "above":
            return "equivalent" in said, False
        case _:
            return first.is_seen, first.bends if kind == "U" else first.is_monotone


def _compared(rng: np.random.Generator) -> comparison.Comparison:
    """Two backends whose difference is the margin."""
    before, after = rng.normal(0, RESTART, (2, STARTS))
    means = Means(before, after + np.log1p(MARGIN), paired=False, datasets=1)
    verdict, p = comparison.judge(means, np.log1p(MARGIN))
    ratio = estimate.of(float(np.exp(means.value)))
    return comparison.Comparison(
        metric="mean_tpot_ms",
        reference="a",
        other="b",
        n=1,
        ratio=ratio,
        difference=ratio,
        verdict=verdict,
        spread=100 * means.spread,
        p_verdict=p,
    )


def _print_tests(truths: Sequence[Shape], repeats: int, sizes: Sequence[int]) -> None:
    heads = ("found", "word", "Spearman", "bend", "distance correlation")
    print(f"{'truth':<8}{'n':>4}" + "".join(f"{head:>22}" for head in heads))
    for kind, n in itertools.product(truths, sizes):
        with patch.object(power, "MOST", 2):  # how many starts would do is not asked
            shares = np.mean([seen(kind, n, seed) for seed in range(repeats)], axis=0)
        print(f"{kind:<8}{n:>4}" + "".join(f"{one:>22.1%}" for one in shares), flush=True)


# --- Verdicts ---


def verdict_on(bends: bool, change: float, noise: float, n: int, seed: int) -> str:
    rng = np.random.default_rng(seed)
    x = skews(n, rng)
    y = line(x, 0.0 if bends else change, noise, rng)
    if bends:
        y += 100 * change * association.folded(x)
    return row(x, y, seed).verdict


def _print_verdicts(repeats: int, sizes: Sequence[int]) -> None:
    heads = ("truth", "change", "noise", "n", *VERDICTS)
    print("".join(f"{head:>14}" for head in heads))
    designs = [*itertools.product((False,), CHANGES), *itertools.product((True,), CHANGES[1:])]
    for (bends, change), noise, n in itertools.product(designs, NOISES, sizes):
        said = [verdict_on(bends, change, noise, n, seed) for seed in range(repeats)]
        shares = "".join(f"{said.count(one) / repeats:>14.1%}" for one in VERDICTS)
        name = "U" if bends else "line"
        print(f"{name:>14}{change:>14.1%}{noise:>14.1%}{n:>14}{shares}", flush=True)


# --- Settling ---


def at_level(found: Row, level: float) -> Row:
    """With as much of a correction as leaves this level."""
    assert found.p_verdict is not None
    assert found.association.p is not None
    factor = association.ALPHA / level
    corrected = msgspec.structs.replace(
        found.association, p_holm=min(1.0, found.association.p * factor)
    )
    return msgspec.structs.replace(
        found, association=corrected, p_holm=min(1.0, found.p_verdict * factor)
    )


def settled(
    change: float, noise: float, n: int, level: float, seed: int
) -> tuple[int, bool] | None:
    """The datasets that a pilot names, and whether as many have a verdict; None where it has one
    itself, or names too many to simulate."""
    rng = np.random.default_rng(seed)
    x = skews(n, rng)
    pilot = at_level(row(x, line(x, change, noise, rng), seed, is_pilot=True), level)
    needed = pilot.needed
    if pilot.verdict != "inconclusive" or needed is None or needed > MOST:
        return None
    measured = (pilot.percent.value or 0.0) / 100
    more = skews(needed, rng)
    again = at_level(row(more, line(more, measured, noise, rng), seed), level)
    return needed, again.verdict in ("larger", "equivalent")


def _print_settling(repeats: int, sizes: Sequence[int]) -> None:
    heads = ("change", "noise", "n", "level", "pilots", "median named", "settled")
    print("".join(f"{head:>14}" for head in heads))
    levels = (association.ALPHA, association.ALPHA / FAMILY)
    designs = ((0.0, 0.01), (0.0, 0.015), (2 * MARGIN, 0.015), (3 * MARGIN, 0.03))
    for (change, noise), n, level in itertools.product(designs, sizes, levels):
        told = [settled(change, noise, n, level, seed) for seed in range(repeats)]
        known = [one for one in told if one is not None]
        named = f"{np.median([needed for needed, _ in known]):.0f}" if known else "–"
        share = f"{np.mean([is_so for _, is_so in known]):.1%}" if known else "–"
        cells = (f"{change:.1%}", f"{noise:.1%}", n, f"{level:.2%}", len(known), named, share)
        print("".join(f"{cell:>14}" for cell in cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=400)
    parser.add_argument("--shuffles", type=int, help="of each test (default: as in findings)")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="datasets")
    parser.add_argument("--truths", nargs="+", choices=SHAPES, default=SHAPES, help="of the tests")
    parser.add_argument("--only", choices=("tests", "verdicts", "settling"))
    a = parser.parse_args()
    if a.shuffles:
        dependence.PERMUTATIONS = dependence.FEWER = a.shuffles
    if a.only in (None, "tests"):
        _print_tests(a.truths, a.repeats, a.sizes)
    if a.only in (None, "verdicts"):
        _print_verdicts(a.repeats, a.sizes)
    if a.only in (None, "settling"):
        _print_settling(a.repeats, a.sizes)


if __name__ == "__main__":
    main()
