"""A limit on how much a metric may change: `mean_tpot_ms<=+2%`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from core.errors import UsageError
from core.rundir.result import Result
from core.stats import comparison, starts
from core.stats.starts import Side

FORM = re.compile(r"\s*(\w+)\s*(<=|>=)\s*([+-]?[0-9.]+)\s*%\s*")
LEVEL = 0.95
Answer = Literal["passed", "failed", "inconclusive"]


@dataclass(frozen=True, slots=True)
class Gate:
    """`metric` of the later side may be at most (`is_most`), or must be at least, `limit_pct`
    beyond the earlier side's."""

    metric: str
    is_most: bool
    limit_pct: float

    @property
    def text(self) -> str:
        return f"{self.metric}{'<=' if self.is_most else '>='}{self.limit_pct:+g}%"


@dataclass(frozen=True, slots=True)
class Ruling:
    """`interval_pct`: of the change, at the level that holds for all pairs of the gate together;
    None where there is none, for `reason`."""

    gate: Gate
    pair: str
    answer: Answer
    change_pct: float | None
    interval_pct: tuple[float, float] | None
    reason: str = ""

    @property
    def in_words(self) -> str:
        change = "–" if self.change_pct is None else f"{self.change_pct:+.1f} %"
        why = f": {self.reason}" if self.reason else ""
        if self.interval_pct:
            change += f" [{self.interval_pct[0]:+.1f}, {self.interval_pct[1]:+.1f}] %"
        return f"{self.gate.text}, {self.pair}: {self.answer} ({change}){why}"


def parse(text: str) -> Gate:
    """UsageError for anything but METRIC<=+N% or METRIC>=-N%."""
    found = FORM.fullmatch(text)
    try:
        limit = float(found[3]) if found else math.nan
    except ValueError:
        limit = math.nan
    if not found or not limit > -100:
        raise UsageError(f"--gate {text}: expected a limit such as mean_tpot_ms<=+2%")
    if found[1] not in Result.__struct_fields__:
        raise UsageError(f"--gate {text}: there is no metric {found[1]} in result files")
    return Gate(found[1], found[2] == "<=", limit)


def rule(gate: Gate, pair: str, sides: Sequence[Side], pairs: int) -> Ruling:
    """The gate's answer for one of its `pairs`: failed, or passed, only where the whole interval of
    the change lies on that side of the limit. Each pair takes its share of the 5 % (Bonferroni), so
    that a gate seldom fails by chance however many pairs it has."""
    values = [v for side in sides for own in side.values() for run in own.values() for v in run]
    if not values or min(values) <= 0:
        return Ruling(gate, pair, "inconclusive", None, None, "no ratio: a value is unknown or 0")
    means = starts.means(*(comparison.logarithms(side) for side in sides))
    if means is None:
        return Ruling(gate, pair, "inconclusive", None, None, "no dataset was run by both")
    change = _percent(means.value)
    if not means.are_replicated:
        return Ruling(gate, pair, "inconclusive", change, None, starts.ONE_START)
    low, high = means.interval(1 - (1 - LEVEL) / pairs)
    limit = math.log1p(gate.limit_pct / 100)
    beyond, within = (low > limit, high <= limit)
    if not gate.is_most:
        beyond, within = (high < limit, low >= limit)
    answer: Answer = "failed" if beyond else "passed" if within else "inconclusive"
    return Ruling(gate, pair, answer, change, (_percent(low), _percent(high)))


def _percent(logarithm: float) -> float:
    return 100 * math.expm1(min(logarithm, 700.0))
