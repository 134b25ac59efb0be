"""The highest load that meets an objective: the points that were measured, each with its
uncertainty, and what they say together.

A start of the server is the unit, as everywhere: each is searched on its own, and the answer is the
mean of their limits with Student's interval. Of one start alone there is an interval over its
requests, which knows nothing of other starts.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

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
from core.stats import level
from core.stats.bootstrap import Interval

LEVEL = 0.95
ENDED = ("done", "failed", "cancelled")  # phases of a run that is over


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One start of a point: how many of its requests that ended met the objective. `ended_early`:
    it was missed for certain before all were sent."""

    start: int
    good: int
    requests: int
    ended_early: bool = False

    def meets(self, share: float) -> bool:
        return not self.ended_early and self.good >= share * self.requests - 1e-9


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One load, at each start that was sent it."""

    load: float
    parts: list[Part]

    @property
    def good(self) -> int:
        return sum(one.good for one in self.parts)

    @property
    def requests(self) -> int:
        return sum(one.requests for one in self.parts)

    @property
    def share(self) -> float:
        return self.good / self.requests

    @property
    def ended_early(self) -> bool:
        return any(one.ended_early for one in self.parts)

    def interval(self, confidence: float) -> Interval:
        """Clopper and Pearson's interval of the share, over requests."""
        from scipy import special

        rest = (1 - confidence) / 2
        missed = self.requests - self.good
        low = special.betaincinv(self.good, missed + 1, rest) if self.good else 0.0
        high = special.betaincinv(self.good + 1, missed, 1 - rest) if missed else 1.0
        return float(low), float(high)


class Answer(NamedTuple):
    """`value`: the highest load that meets the objective; None where no load did. It lies between
    `low` and `high`; None where no point shows such an end.

    Over several `starts`: the geometric mean of the loads at which their shares fall through what
    was asked for, with Student's 95 % interval, widened to the loads on either side. Over requests
    (`starts` is 1): the highest load that met it below the lowest that did not, from the highest
    load whose interval of the share lies above what was asked for with no other point's below it,
    to the lowest whose interval lies below; all intervals hold together with 95 % (Bonferroni)."""

    value: float | None
    low: float | None
    high: float | None
    starts: int

    @property
    def unit(self) -> str:
        return "requests of one start" if self.starts == 1 else f"{self.starts} starts"


class Crossing(NamedTuple):
    """The load at which one start's share is what was asked for, and those on either side."""

    met: float
    at: float
    missed: float


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """An `Answer` with the points that it came from; `intervals`: of their shares, over
    requests."""

    base: str
    over: str
    share: float
    value: float | None
    low: float | None
    high: float | None
    unit: str
    points: list[Point]
    intervals: list[Interval]
    is_done: bool
    note: str

    @property
    def in_words(self) -> str:
        """`all2all: a share of 0.99 meets the objective up to max_concurrency = 24 [16, 28], 95 %
        over 3 starts`."""
        so_far = "" if self.is_done else "so far, "
        if self.value is None:
            return f"{self.base}: {so_far}{self.note}"
        note = f"; {self.note}" if self.note else ""
        return (
            f"{self.base}: {so_far}a share of {self.share:g} meets the objective up to"
            f" {self.over} = {self.value:.4g} [{_end(self.low)}, {_end(self.high)}], 95 % over"
            f" {self.unit}{note}"
        )


def points(base: str, asked: SweepFile, states: Mapping[str, CellState]) -> list[Point]:
    """The points of a search that have requests, by load."""
    wanted = asked.search
    assert wanted
    own = [cell for cell in asked.cells if cell.base == base]
    found = [_point(cell, states[cell.slug], wanted) for cell in own]
    return sorted((one for one in found if one.parts), key=lambda one: one.load)


def limit(base: Cell, asked: SweepFile, states: Mapping[str, CellState]) -> Limit:
    wanted = asked.search
    assert wanted
    found = points(base.slug, asked, states)
    own = answer(found, wanted)
    return Limit(
        base=base.slug,
        over=wanted.over,
        share=wanted.share,
        value=own.value,
        low=own.low,
        high=own.high,
        unit=own.unit,
        points=found,
        intervals=together(found),
        is_done=_following(base, found, wanted) is None,
        note=_note(wanted, found, own),
    )


def answer(found: Sequence[Point], wanted: Search) -> Answer:
    """Over starts, where there are several and each has a limit between two loads; else over
    requests."""
    numbers = sorted({part.start for one in found for part in one.parts})
    crossings = [_crossing(found, wanted, number) for number in numbers]
    known = [one for one in crossings if one is not None]
    if len(known) > 1 and len(known) == len(crossings):
        return _over_starts(known, wanted)
    met = {one.load: not one.ended_early and one.share >= wanted.share for one in found}
    return Answer(search.bracket(met)[0], *ends(found, wanted.share), 1)


def _over_starts(crossings: Sequence[Crossing], wanted: Search) -> Answer:
    sides = ({n: {"": [one[key]]} for n, one in enumerate(crossings)} for key in range(3))
    met, at, missed = (level.of_side(side, LEVEL).estimate for side in sides)
    assert met.value
    assert at.value
    assert at.interval
    assert missed.value
    low, high = min(met.value, at.interval[0]), max(missed.value, at.interval[1])
    if wanted.is_whole:
        return Answer(math.floor(at.value), math.floor(low), math.ceil(high), len(crossings))
    return Answer(at.value, low, high, len(crossings))


def _crossing(found: Sequence[Point], wanted: Search, start: int) -> Crossing | None:
    """Where a start's share falls through what was asked for: between its two loads by their
    logarithms, once the shares are made to fall with the load. None where it does not."""
    from scipy import optimize

    own = [(one.load, part) for one in found for part in one.parts if part.start == start]
    loads = [load for load, _ in own]
    counts = [part.requests for _, part in own]
    shares = [part.good / part.requests for _, part in own]
    falling = optimize.isotonic_regression(shares, weights=counts, increasing=False).x
    below = next((n for n, share in enumerate(falling) if share < wanted.share), 0)
    if not below:
        return None
    above = below - 1
    part_way = (falling[above] - wanted.share) / (falling[above] - falling[below])
    at = loads[above] * (loads[below] / loads[above]) ** part_way
    return Crossing(loads[above], float(at), loads[below])


def together(found: Sequence[Point]) -> list[Interval]:
    """The points' intervals, which all hold together with 95 % (Bonferroni)."""
    return [one.interval(1 - (1 - LEVEL) / len(found)) for one in found]


def ends(found: Sequence[Point], share: float) -> tuple[float | None, float | None]:
    """`low` and `high` of an answer over requests."""
    intervals = list(zip([one.load for one in found], together(found), strict=True))
    high = min((load for load, (_, end) in intervals if end < share), default=None)
    shown = [load for load, (start, _) in intervals if start >= share]
    return max((load for load in shown if high is None or load < high), default=None), high


def next_point(base: Cell, asked: SweepFile, states: Mapping[str, CellState]) -> Cell | None:
    """The cell of the load to measure next, where there is none of it yet."""
    wanted = asked.search
    assert wanted
    following = _following(base, points(base.slug, asked, states), wanted)
    if following is None:
        return None
    made = _cell(base, wanted, following[1])
    return None if any(cell.slug == made.slug for cell in asked.cells) else made


def wanted_starts(asked: SweepFile, states: Mapping[str, CellState]) -> dict[str, Collection[int]]:
    """Which starts each cell is to have, by what is known now: of a search, those that were sent
    its load, and the one that is to be sent it next."""
    if asked.search is None:
        return {
            slug: range(1, cells.wanted_starts(state, asked.until) + 1)
            for slug, state in states.items()
        }
    wanted: dict[str, Collection[int]] = {
        slug: range(1, state.cell.starts + 1) for slug, state in states.items()
    }
    for base in asked.bases:
        found = points(base.slug, asked, states)
        following = _following(base, found, asked.search)
        for cell in asked.cells:
            if cell.base == base.slug:
                load = float(cell.settings[asked.search.key])
                had = {p.start for one in found if one.load == load for p in one.parts}
                is_next = following is not None and following[1] == load
                wanted[cell.slug] = had | {following[0]} if following and is_next else had
    return wanted


def _following(base: Cell, found: Sequence[Point], wanted: Search) -> tuple[int, float] | None:
    """The start and its load that are measured next; None once every start is searched."""
    begin = None
    for number in range(1, base.starts + 1):
        met = _met(found, wanted, number)
        load = search.next_load(wanted, met, begin)
        if load is not None:
            return number, load
        begin = begin or search.begin_again(wanted, met)
    return None


def _met(found: Sequence[Point], wanted: Search, start: int) -> dict[float, bool]:
    return {
        one.load: part.meets(wanted.share)
        for one in found
        for part in one.parts
        if part.start == start
    }


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
    found = [_part(state, number, ended) for number in range(1, cell.starts + 1)]
    return Point(
        load=float(cell.settings[wanted.key]), parts=[one for one in found if one is not None]
    )


def _part(state: CellState, number: int, ended: Mapping[str, list[bool]]) -> Part | None:
    """None where the start is not over, or nothing of it was measured."""
    own = state.of_start(number)
    outcomes = [outcome for run in own for outcome in ended.get(run.run.id, ())]
    if not outcomes or any(run.phase not in ENDED for run in own):
        return None
    early = any(run.phase == "cancelled" for run in own)
    good, requests = sum(outcomes), len(outcomes)
    if early and good == requests:  # those that were cut off had waited too long
        requests += 1
    return Part(start=number, good=good, requests=requests, ended_early=early)


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


def _note(wanted: Search, found: Sequence[Point], own: Answer) -> str:
    if not found:
        return "nothing was measured"
    if own.value is None:
        return f"the objective is missed already at {found[0].load:g}"
    if own.starts > 1:
        return ""
    if own.value >= wanted.high:
        return f"the limit is beyond {wanted.high:g}, where the search ended"
    if own.low is None and wanted.share < 1:
        alpha = (1 - LEVEL) / len(found) / 2
        needed = math.ceil(math.log(alpha) / math.log(wanted.share))
        return f"to show that a share of {wanted.share:g} is met takes {needed} requests a point"
    return ""


def _end(load: float | None) -> str:
    return "?" if load is None else f"{load:.4g}"
