"""The highest load that meets an objective: the points that were measured, each with its
uncertainty, and what they say together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from core.analysis import cells
from core.analysis.cells import CellState
from core.experiment import events, saturation, search
from core.experiment.cell import Cell
from core.experiment.events import AnyEvent
from core.experiment.search import Search
from core.experiment.tables import Slo
from core.rundir import journal
from core.rundir.sweep import SweepFile
from core.stats.bootstrap import Interval

LEVEL = 0.95


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One load: how many of the requests that ended met the objective, at how many starts.
    `ended_early`: it was missed for certain before all were sent."""

    load: float
    good: int
    requests: int
    starts: int
    ended_early: bool = False

    @property
    def share(self) -> float:
        return self.good / self.requests

    def interval(self, confidence: float) -> Interval:
        """Clopper and Pearson's interval of the share, over requests."""
        from scipy import special

        rest = (1 - confidence) / 2
        missed = self.requests - self.good
        low = special.betaincinv(self.good, missed + 1, rest) if self.good else 0.0
        high = special.betaincinv(self.good + 1, missed, 1 - rest) if missed else 1.0
        return float(low), float(high)


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """`value`: the highest load that met the objective, below the lowest that did not. It lies
    between `low`, the highest load whose interval of the share lies above what was asked for with
    no other point's below it, and `high`, the lowest load whose interval lies below; None where no
    point shows one. All intervals hold together with 95 % (Bonferroni)."""

    base: str
    over: str
    share: float
    value: float | None
    low: float | None
    high: float | None
    points: list[Point]
    intervals: list[Interval]
    is_done: bool
    note: str

    @property
    def in_words(self) -> str:
        """`all2all: a share of 0.99 meets the objective up to max_concurrency = 24 [16, 28]`."""
        so_far = "" if self.is_done else "so far, "
        if self.value is None:
            return f"{self.base}: {so_far}{self.note}"
        note = f"; {self.note}" if self.note else ""
        return (
            f"{self.base}: {so_far}a share of {self.share:g} meets the objective up to"
            f" {self.over} = {self.value:g} [{_end(self.low)}, {_end(self.high)}]{note}"
        )


def points(base: str, asked: SweepFile, states: Mapping[str, CellState]) -> list[Point]:
    """The points of a search that have requests, by load."""
    wanted = asked.search
    assert wanted
    made = []
    for cell in asked.cells:
        if cell.base == base:
            found = _point(cell, states[cell.slug], wanted)
            made += [found] if found.requests else []
    return sorted(made, key=lambda one: one.load)


def limit(base: str, asked: SweepFile, states: Mapping[str, CellState]) -> Limit:
    wanted = asked.search
    assert wanted
    found = points(base, asked, states)
    intervals = together(found)
    low, high = ends(found, wanted.share)
    met = _met(found, wanted)
    value, _ = search.bracket(met)
    return Limit(
        base=base,
        over=wanted.over,
        share=wanted.share,
        value=value,
        low=low,
        high=high,
        points=found,
        intervals=intervals,
        is_done=bool(met) and search.next_load(wanted, met) is None,
        note=_note(wanted, found, value, low),
    )


def together(found: Sequence[Point]) -> list[Interval]:
    """The points' intervals, which all hold together with 95 % (Bonferroni)."""
    return [one.interval(1 - (1 - LEVEL) / len(found)) for one in found]


def ends(found: Sequence[Point], share: float) -> tuple[float | None, float | None]:
    """`low` and `high` of a limit."""
    intervals = list(zip([one.load for one in found], together(found), strict=True))
    high = min((load for load, (_, end) in intervals if end < share), default=None)
    shown = [load for load, (start, _) in intervals if start >= share]
    return max((load for load in shown if high is None or load < high), default=None), high


def next_point(base: Cell, asked: SweepFile, states: Mapping[str, CellState]) -> Cell | None:
    """The cell of the load to measure next; None where the search is over, or waits for a point
    that is not measured yet."""
    wanted = asked.search
    assert wanted
    own = [cell for cell in asked.cells if cell.base == base.slug]
    found = points(base.slug, asked, states)
    if len(found) < len(own):
        return None
    load = search.next_load(wanted, _met(found, wanted))
    return None if load is None else _cell(base, wanted, load)


def wanted_starts(asked: SweepFile, state: CellState) -> int:
    """How many starts a cell is to have, by what is known now: a point of a search that is certain,
    one way or the other, gets no further one."""
    wanted, had = asked.search, state.finished_starts
    if wanted is None:
        return cells.wanted_starts(state, asked.until)
    if not had:
        return state.cell.starts
    found = _point(state.cell, state, wanted)
    if not found.requests:
        return state.cell.starts
    low, high = found.interval(LEVEL)
    is_certain = found.ended_early or low >= wanted.share or high < wanted.share
    return had if is_certain else state.cell.starts


def _met(found: Sequence[Point], wanted: Search) -> dict[float, bool]:
    return {one.load: not one.ended_early and one.share >= wanted.share for one in found}


def _cell(base: Cell, wanted: Search, load: float) -> Cell:
    value = int(load) if wanted.is_whole else load
    changed = {wanted.over: value, "slo": Slo(**wanted.slo)}
    experiment = msgspec.structs.replace(base.config.experiment, **changed)
    return Cell(
        slug=f"{base.slug},{wanted.over}={value:g}",
        settings={**base.settings, wanted.key: value},
        config=msgspec.structs.replace(base.config, experiment=experiment),
        base=base.slug,
    )


def _point(cell: Cell, state: CellState, wanted: Search) -> Point:
    stream = journal.stream_events(state.path) if state.seen.runs else ()
    ended = _outcomes(stream, wanted.slo)
    started = {run for run in state.seen.runs if run in ended}
    starts = {state.seen.runs[run].run.start for run in started}
    early = any(r.phase == "cancelled" for r in state.seen.runs.values())
    good = sum(sum(outcomes) for outcomes in ended.values())
    requests = sum(len(outcomes) for outcomes in ended.values())
    if early and good == requests:  # those that were cut off had waited too long
        requests += 1
    return Point(
        load=float(cell.settings[wanted.key]),
        good=good,
        requests=requests,
        starts=len(starts),
        ended_early=early,
    )


def _outcomes(stream: Iterable[AnyEvent], slo: Mapping[str, float]) -> dict[str, list[bool]]:
    """Run → whether each of its requests met the objective, in its last try."""
    ended: dict[str, list[bool]] = {}
    for event in stream:
        match event:
            case events.RunStarted():
                ended[event.run] = []
            case events.RequestFinished():
                ended.setdefault(event.run, []).append(saturation.meets(event, slo))
    return {run: outcomes for run, outcomes in ended.items() if outcomes}


def _note(wanted: Search, found: Sequence[Point], value: float | None, shown: float | None) -> str:
    if not found:
        return "nothing was measured"
    if value is None:
        return f"the objective is missed already at {found[0].load:g}"
    if value >= wanted.high:
        return f"the limit is beyond {wanted.high:g}, where the search ended"
    if shown is None and wanted.share < 1:
        alpha = (1 - LEVEL) / len(found) / 2
        needed = math.ceil(math.log(alpha) / math.log(wanted.share))
        return f"to show that a share of {wanted.share:g} is met takes {needed} requests a point"
    return ""


def _end(load: float | None) -> str:
    return "?" if load is None else f"{load:g}"
