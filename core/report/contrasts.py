"""What was found, on a screen of 80 columns: for each metric the effect with its interval, the
units that it rests on, the verdict, and what would settle it; of backends compared, and of each
backend against skew."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from core.analysis.findings import Row
from core.analysis.results import NAMES
from core.experiment.registration import Registration
from core.rundir.registered import Registered
from core.stats.bootstrap import Interval
from core.stats.comparison import MARGIN_PCT, Comparison
from core.stats.estimate import Estimate
from core.terminal import shown

ROW = "  {:<12}{:>7}  {:<16}{:>12}  {:<14}{}"
HEAD = ROW.format("", "effect %", "95 % interval", "in its unit", "verdict", "to settle it")
NOT_REGISTERED = (
    f"not registered before the first run; smallest effect taken to be {MARGIN_PCT:g} %"
)


def lines(
    found: Sequence[Comparison], rows: Sequence[Row], registered: Registered
) -> Iterator[str]:
    """A block for every pair of backends, then one for each backend against skew."""
    yield HEAD
    for (title, reason), group in itertools.groupby(found, key=_units):
        yield title
        yield from [reason] if reason else []
        yield from (_compared(one, registered.first) for one in group)
    yield from about(registered) if found else []
    for backend, own in itertools.groupby(rows, key=lambda row: row.backend):
        yield from _against_skew(backend, list(own))


def _against_skew(backend: str, rows: Sequence[Row]) -> Iterator[str]:
    first = rows[0].association
    if first.slope.value is None:
        yield f"{backend} against excess CV²: {first.slope.reason}"
        return
    yield (
        f"{backend} as excess CV² rises by {rows[0].span:.2g}, the middle 80 % of"
        f" {first.n} datasets"
    )
    yield from (_associated(row) for row in rows)


def about(registered: Registered) -> list[str]:
    """What was registered, and what was changed since: a sentence each."""
    first = registered.first
    if first is None:
        return [NOT_REGISTERED, *registered.changes]
    contrasts = ", ".join(first.contrasts)
    asked = f"{NAMES[first.metric][0]}, {contrasts}" if contrasts else NAMES[first.metric][0]
    matters = f"smallest effect {first.smallest_effect_pct:g} %"
    return [f"* registered first: {asked}; {matters}", *registered.changes]


def _units(one: Comparison) -> tuple[str, str]:
    """The heading of a block, and why its effects have no interval."""
    title = f"{one.other} against {one.reference}"
    if one.ratio.value is None:
        return title, one.ratio.reason or ""
    return f"{title}: {one.unit}", one.ratio.reason or ""


def _compared(one: Comparison, registered: Registration | None) -> str:
    name, unit = NAMES[one.metric]
    mark = " *" if registered and registered.metric == one.metric else ""
    percent = None if one.percent is None else Estimate(one.percent, _in_percent(one.ratio))
    difference = f"{shown(one.difference.value, '+.3g')} {unit}"
    return _line(f"{name}{mark}", percent, difference, one.verdict, one.to_settle_briefly)


def _in_percent(ratio: Estimate) -> Interval | None:
    if ratio.interval is None:
        return None
    low, high = (100 * (end - 1) for end in ratio.interval)
    return low, high


def _associated(row: Row) -> str:
    name, unit = NAMES[row.metric]
    change = f"{shown(row.change.value, '+.3g')} {unit}"
    return _line(name, row.percent, change, row.verdict, row.to_settle)


def _line(name: str, percent: Estimate | None, change: str, verdict: str, settled: str) -> str:
    value = shown(percent.value if percent else None, "+.1f")
    ends = percent.interval if percent else None
    interval = "–" if ends is None else f"[{ends[0]:+.1f}, {ends[1]:+.1f}]"
    return ROW.format(name, value, interval, change, verdict, settled).rstrip()
