"""Two backends: how much one metric differs, with an interval that rests on server starts, and the
verdict at the smallest effect that matters.

*larger*: the difference exceeds the margin, either way (so its 95 % interval excludes 0);
*equivalent*: it lies within the margin, by two one-sided tests. Both at 5 %; as the truth is on one
side of the margin, only one of the two can be false, and a comparison counts as one test in Holm's
correction. Anything else is *inconclusive*. The margin is of the ratio: 2 % is ×1.02 or ÷1.02.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec
import numpy as np

from core.stats import estimate, power, starts
from core.stats.estimate import Estimate
from core.stats.starts import ONE_START, Means, Side

MARGIN_PCT = 2.0
LEVEL = 0.95
Verdict = Literal["larger", "equivalent", "inconclusive"]
NOT_ABOVE_ZERO = "a value is not above zero, so there is no ratio"


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """`ratio`: geometric mean of other/reference; `difference`: mean of other - reference; both
    without an interval where a backend was started once.

    `n`: datasets; `starts`: of the reference and of the other; `paired`: the datasets were shared
    out over the starts; `spread`: SD of a start's mean (where paired, of a pair's difference), in
    %; `p`: two-sided, that there is no difference; `p_verdict`: of the likelier verdict, and
    `p_holm`: after Holm's correction; `needed`: starts of each backend that give a verdict with
    80 % power, if the difference is as it was measured.
    """

    metric: str
    reference: str
    other: str
    n: int
    ratio: Estimate
    difference: Estimate
    margin_pct: float = MARGIN_PCT
    verdict: Verdict = "inconclusive"
    starts: tuple[int, int] = (1, 1)
    paired: bool = False
    repeats: tuple[int, int] = (1, 1)
    spread: float | None = None
    p: float | None = None
    p_verdict: float | None = None
    p_holm: float | None = None
    needed: int | None = None

    def in_words(self, name: str) -> str:
        """One sentence: what differs by how much, on which units, and what that amounts to."""
        if self.ratio.value is None:
            return (
                f"{self.other} {name} and {self.reference}'s are not compared: {self.ratio.reason}"
            )
        effect = f"{self.other} {name} is {self._effect} {self.reference}'s"
        settled = f"; to settle it: {self.to_settle}" if self.to_settle else ""
        if self.ratio.interval is None:
            return f"{effect} on {self._datasets}: no interval: {self.ratio.reason}{settled}"
        return f"{effect} {self.shown_interval}, {self.unit}: {self.verdict_in_words}{settled}"

    @property
    def percent(self) -> float | None:
        return None if self.ratio.value is None else 100 * (self.ratio.value - 1)

    @property
    def shown_interval(self) -> str:
        """`[-8.0, +0.2] %`; a dash where there is none."""
        if self.ratio.interval is None:
            return "–"
        low, high = (100 * (end - 1) for end in self.ratio.interval)
        return f"[{low:+.1f}, {high:+.1f}] %"

    @property
    def verdict_in_words(self) -> str:
        match self.verdict:
            case "larger":
                return f"larger than {self.margin_pct:g} %"
            case "equivalent":
                return f"smaller than {self.margin_pct:g} % (equivalent)"
            case _:
                return f"inconclusive at {self.margin_pct:g} %"

    @property
    def unit(self) -> str:
        """`3 + 3 starts, which share 50 datasets`."""
        ran = f"which share {self._datasets}" if self.paired else f"each of {self._datasets}"
        return f"{self.starts[0]} + {self.starts[1]} starts, {ran}"

    @property
    def to_settle(self) -> str:
        """What a verdict would take; empty where there is one."""
        if self.verdict != "inconclusive" or self.ratio.value is None:
            return ""
        if self.ratio.interval is None:
            return "2 starts or more"
        share = self.n // self.starts[0] if self.paired else self.n
        if self.needed is None:
            return f"over {power.MOST} starts: the effect is near the margin"
        return f"{self.needed} starts of {_counted(share)}"

    @property
    def to_settle_briefly(self) -> str:
        """`18 starts`."""
        if not self.to_settle or self.ratio.interval is None:
            return "2+ starts" if self.to_settle else ""
        return f">{power.MOST} starts" if self.needed is None else f"{self.needed} starts"

    @property
    def _effect(self) -> str:
        percent = self.percent or 0.0
        return f"{abs(percent):.1f} % {'lower' if percent < 0 else 'higher'} than"

    @property
    def _datasets(self) -> str:
        return f"{_counted(self.n)}{repeated(self.repeats)}"


def _counted(datasets: int) -> str:
    return "1 dataset" if datasets == 1 else f"{datasets} datasets"


def repeated(repeats: tuple[int, int]) -> str:
    """` × 3 repeats`, ` × 2–3 repeats`, or nothing if each dataset ran once."""
    fewest, most = repeats
    if most < 2:
        return ""
    return f" × {fewest} repeats" if fewest == most else f" × {fewest}–{most} repeats"


def compare(
    metric: str, reference: str, other: str, sides: Sequence[Side], margin_pct: float = MARGIN_PCT
) -> Comparison:
    """Compare `sides`, first the reference's, then the other's."""
    before, after = sides
    both = starts.shared(before, after)
    counts = [len(own[name]) for side in sides for own in side.values() for name in both & {*own}]
    found = Comparison(
        metric=metric,
        reference=reference,
        other=other,
        n=len(both),
        ratio=estimate.none("no dataset was run by both"),
        difference=estimate.none("no dataset was run by both"),
        margin_pct=margin_pct,
        repeats=(min(counts, default=1), max(counts, default=1)),
        starts=(len(before), len(after)),
    )
    if any(v <= 0 for side in sides for own in side.values() for run in own.values() for v in run):
        return msgspec.structs.replace(
            found, ratio=estimate.none(NOT_ABOVE_ZERO), difference=estimate.none(NOT_ABOVE_ZERO)
        )
    logs = starts.means(*(logarithms(side) for side in sides))
    plain = starts.means(before, after)
    if logs is None or plain is None:
        return found
    return _judged(found, logs, plain)


def _judged(found: Comparison, logs: Means, plain: Means) -> Comparison:
    """`found` with its estimates, and where starts are replicated with its verdict."""
    found = msgspec.structs.replace(
        found,
        n=logs.datasets,
        starts=(len(logs.before), len(logs.after)),
        paired=logs.paired,
        ratio=_estimate(logs, _exponential),
        difference=_estimate(plain, float),
    )
    if not logs.are_replicated:
        return found
    verdict, p = judge(logs, _margin(found))
    found = msgspec.structs.replace(
        found, verdict=verdict, spread=100 * logs.spread, p=logs.p(), p_verdict=p
    )
    return found if verdict != "inconclusive" else _unsettled(found)


def judge(means: Means, margin: float) -> tuple[Verdict, float]:
    """The verdict on a difference at 5 %, and the p of the likelier one."""
    return likelier(means.p_larger(margin), means.p_equivalent(margin))


def likelier(larger: float, equivalent: float) -> tuple[Verdict, float]:
    """The verdict at 5 % by the p of each, and the p of the likelier one."""
    p = min(larger, equivalent)
    if p >= power.ALPHA:
        return "inconclusive", p
    return ("larger" if larger < equivalent else "equivalent"), p


def corrected(found: Comparison, p_holm: float | None) -> Comparison:
    """With the p of its verdict after Holm's correction, which may leave it inconclusive."""
    found = msgspec.structs.replace(found, p_holm=p_holm)
    if p_holm is None or p_holm < power.ALPHA:
        return found
    return _unsettled(msgspec.structs.replace(found, verdict="inconclusive"))


def _unsettled(found: Comparison) -> Comparison:
    """With the starts that would give a verdict, at the level that the correction leaves it."""
    assert found.ratio.value is not None
    assert found.spread is not None
    level = power.ALPHA
    if found.p_holm and found.p_verdict:
        level *= found.p_verdict / found.p_holm
    needed = power.starts_for_verdict(
        math.log(max(found.ratio.value, sys.float_info.min)),
        _margin(found),
        found.spread / 100,
        paired=found.paired,
        alpha=level,
    )
    return msgspec.structs.replace(found, needed=needed)


def _margin(found: Comparison) -> float:
    return math.log1p(found.margin_pct / 100)


def _estimate(means: Means, scale: Callable[[float], float]) -> Estimate:
    if not means.are_replicated:
        return Estimate(scale(means.value), None, ONE_START)
    low, high = means.interval(LEVEL)
    return Estimate(scale(means.value), (scale(low), scale(high)))


def _exponential(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(value))


def logarithms(side: Side) -> Side:
    """The same, of the logarithms of its values."""
    return {
        start: {name: np.log(run).tolist() for name, run in own.items()}
        for start, own in side.items()
    }
