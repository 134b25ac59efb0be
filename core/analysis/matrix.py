"""The cells of a sweep as a matrix: rows and columns are swept keys, each cell its state or the
headline metric with its interval."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from core.analysis import cells, limits
from core.analysis.cells import CellState
from core.analysis.results import NAMES
from core.experiment import sweep
from core.experiment.cell import shown
from core.rundir.sweep import SweepFile
from core.stats import comparison
from core.stats.level import Level

HIGHER_IS_BETTER = ("throughput", "goodput")
LEGEND = "* best; ~ not told apart from it (95 % interval of their ratio, no correction)"


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One cell in the matrix. `mark`: "*" the best, "~" not told apart from it."""

    cell: str
    backend: str
    settings: dict[str, Any]
    state: str
    metric: str
    value: float | None
    interval: tuple[float, float] | None
    reason: str | None
    starts: int
    datasets: int
    nodes: list[str] = []
    mark: str = ""

    @property
    def text(self) -> str:
        """`1.52 [1.50, 1.54] *`, or the state of a cell that has no value."""
        if self.value is None:
            return self.state
        ends = "" if self.interval is None else f" [{self.interval[0]:.4g}, {self.interval[1]:.4g}]"
        unfinished = "" if self.state in ("done", "failed") else f" ({self.state})"
        failed = " (a run failed)" if self.state == "failed" else ""
        return f"{self.value:.4g}{ends}{failed}{unfinished} {self.mark}".rstrip()


def entries(asked: SweepFile, states: Mapping[str, CellState]) -> list[Entry]:
    """The cells in their order, the best one marked."""
    best = _best(asked.metric, states)
    wanted = limits.wanted_starts(asked, states)
    return [_entry(asked, states[c.slug], wanted[c.slug], best) for c in asked.cells]


class Grid(NamedTuple):
    """The matrix: rows by backend and swept keys (`head` names them), one column for each value of
    the last swept key. None where a cell is not part of the sweep."""

    head: list[str]
    columns: list[str]
    rows: dict[tuple[str, ...], list[Entry | None]]


def grid(found: Sequence[Entry]) -> Grid:
    """A sweep without swept keys is a column of its backends."""
    keys = swept(found)
    across = keys[-1] if keys and len(_values(found, keys[-1])) > 1 else None
    down = [key for key in keys if key != across]
    values: list[str | None] = _values(found, across) if across else [None]
    rows: dict[tuple[str, ...], list[Entry | None]] = {}
    for entry in found:
        key = (entry.backend, *(_shown(entry, name) for name in down))
        place = values.index(_value(entry, across)) if across else 0
        rows.setdefault(key, [None] * len(values))[place] = entry
    titles = [f"{sweep.short(across)}={value or '–'}" for value in values] if across else [""]
    return Grid(["backend", *map(sweep.short, down)], titles, rows)


def title(asked: SweepFile) -> str:
    name, unit = NAMES[asked.metric]
    return f"mean {name}, {unit} [95 % interval over server starts]"


def notes(found: Sequence[Entry]) -> Iterator[str]:
    """What the marks are, how many starts there are, and why there is no interval."""
    if any(entry.mark for entry in found):
        yield LEGEND
    starts = sorted({entry.starts for entry in found if entry.value is not None})
    if starts:
        yield f"starts of a cell: {'–'.join(map(str, dict.fromkeys((starts[0], starts[-1]))))}"
    yield from _why(found)
    nodes = {tuple(entry.nodes) for entry in found if entry.nodes}
    if len(nodes) > 1:
        yield (
            f"measured on {len({node for own in nodes for node in own})} nodes: cells that share"
            " none differ by their nodes too, which no interval and no mark allows for"
        )


def swept(found: Sequence[Entry]) -> list[str]:
    """The swept keys, in order."""
    return list(dict.fromkeys(key for entry in found for key in entry.settings))


def state_of(asked: SweepFile, state: CellState, wanted: Collection[int]) -> str:
    """`queued`, `1 of 2 starts`, `running`, `failed`, `done`, or why it stopped before its most
    starts. `wanted`: the starts that it is to have, by what is known now."""
    if state.seen.live and not state.seen.interrupted and not state.seen.finished:
        return "running"
    if state.failures:
        return "failed"
    had = sum(not state.is_pending(n) for n in wanted) if state.seen.runs else 0
    if had < len(wanted):
        return f"{had} of {len(wanted)} starts" if had else "queued"
    if asked.until and not cells.is_known(state, asked.until):
        return f"not within {asked.until.half_width_pct:g} % after {len(wanted)} starts"
    return "done"


def _entry(
    asked: SweepFile, state: CellState, wanted: Collection[int], best: CellState | None
) -> Entry:
    level = state.level(asked.metric)
    if asked.until and asked.until.metric == asked.metric:
        level = cells.known_level(state, asked.until)
    return Entry(
        cell=state.cell.slug,
        backend=state.cell.backend,
        settings=state.cell.settings,
        state=state_of(asked, state, wanted),
        metric=asked.metric,
        value=level.estimate.value,
        interval=level.estimate.interval,
        reason=level.estimate.reason,
        starts=level.starts,
        datasets=level.datasets,
        nodes=sorted({r.node for r in state.group.by_label.values() if r.node})
        if state.group
        else [],
        mark=_mark(asked.metric, state, best, level),
    )


def is_higher_better(metric: str) -> bool:
    return any(word in metric for word in HIGHER_IS_BETTER)


def _best(metric: str, states: Mapping[str, CellState]) -> CellState | None:
    known = [(s.level(metric).estimate.value, s) for s in states.values()]
    measured = [(value, state) for value, state in known if value is not None]
    if len(measured) < 2:
        return None
    choose = max if is_higher_better(metric) else min
    return choose(measured, key=lambda one: one[0])[1]


def _mark(metric: str, state: CellState, best: CellState | None, level: Level) -> str:
    if best is None or best.group is None or state.group is None or level.estimate.value is None:
        return ""
    if best is state:
        return "*"
    sides = (best.group.by_start(metric), state.group.by_start(metric))
    ratio = comparison.compare(metric, best.cell.slug, state.cell.slug, sides).ratio
    is_apart = ratio.interval is not None and not ratio.interval[0] <= 1 <= ratio.interval[1]
    return "" if is_apart else "~"


def _values(found: Sequence[Entry], key: str | None) -> list[str | None]:
    """The values of a swept key, each once, in order; None for cells that it does not concern."""
    return list(dict.fromkeys(_value(entry, key) for entry in found))


def _value(entry: Entry, key: str | None) -> str | None:
    return shown(entry.settings[key]) if key in entry.settings else None


def _shown(entry: Entry, key: str) -> str:
    return _value(entry, key) or "–"


def _why(found: Sequence[Entry]) -> Iterator[str]:
    """Why there is no interval, each reason once."""
    for reason in dict.fromkeys(e.reason for e in found if e.value is not None and e.reason):
        yield f"no interval: {reason}"
