"""Backends compared, on a screen: for each metric the effect with its interval, the units that it
rests on, the verdict, and what would settle it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from core.analysis.results import NAMES
from core.experiment.registration import Registration
from core.rundir.registered import Registered
from core.stats.comparison import MARGIN_PCT, Comparison
from core.terminal import shown

ROW = "{:<12}{:>9}  {:<18}{:>14}  {:<14}{}"
HEAD = ROW.format("metric", "effect", "95 % interval", "in its unit", "verdict", "to settle it")
NOT_REGISTERED = (
    "what was to be compared was not registered before the first run;"
    f" the smallest effect is taken to be {MARGIN_PCT:g} %"
)


def lines(found: Sequence[Comparison], registered: Registered) -> Iterator[str]:
    """A block for every pair of backends; nothing where one backend ran."""
    if not found:
        return
    for (title, reason), group in itertools.groupby(found, key=_units):
        yield title
        yield from [f"  {reason}"] if reason else []
        yield f"  {HEAD}"
        yield from (f"  {_row(one, registered.first)}".rstrip() for one in group)
    yield from (f"  {line}" for line in about(registered))


def about(registered: Registered) -> list[str]:
    """What was registered, and what was changed since: a sentence each."""
    first = registered.first
    if first is None:
        return [NOT_REGISTERED, *registered.changes]
    contrasts = ", ".join(first.contrasts)
    asked = f"{NAMES[first.metric][0]}, {contrasts}" if contrasts else NAMES[first.metric][0]
    matters = f"smallest effect {first.smallest_effect_pct:g} %"
    return [f"* registered before the first run: {asked}; {matters}", *registered.changes]


def _units(one: Comparison) -> tuple[str, str]:
    """The heading of a block, and why its effects have no interval."""
    title = f"{one.other} against {one.reference}"
    if one.ratio.value is None:
        return title, one.ratio.reason or ""
    return f"{title}: {one.unit}", one.ratio.reason or ""


def _row(one: Comparison, registered: Registration | None) -> str:
    name, unit = NAMES[one.metric]
    mark = " *" if registered and registered.metric == one.metric else ""
    return ROW.format(
        f"{name}{mark}",
        "–" if one.percent is None else f"{one.percent:+.1f} %",
        one.shown_interval,
        f"{shown(one.difference.value, '+.3g')} {unit}",
        one.verdict,
        one.to_settle,
    )
