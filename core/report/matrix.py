"""The cells of a sweep as a table: rows and columns are swept keys, each cell its state or the
headline metric with its interval."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from core.analysis import cells, findings, limits
from core.analysis.cells import CellState
from core.analysis.results import NAMES
from core.experiment import sweep
from core.experiment.cell import shown
from core.files import formatted, write_whole
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
    return [_entry(asked, states[cell.slug], best) for cell in asked.cells]


def lines(asked: SweepFile, found: Sequence[Entry]) -> Iterator[str]:
    """The matrix as text; a sweep without swept keys is a list of its backends."""
    name, unit = NAMES[asked.metric]
    yield f"mean {name}, {unit} [95 % interval over server starts]"
    keys = swept(found)
    across = keys[-1] if keys and len(_values(found, keys[-1])) > 1 else None
    down = [key for key in keys if key != across]
    values: list[Any] = _values(found, across) if across else [None]
    rows = _rows(found, down, across)
    head = ["backend", *map(sweep.short, down)]
    titles = [f"{sweep.short(across)}={shown(v)}" for v in values] if across else [""]
    table = [[*head, *titles]]
    for key, by_value in rows.items():
        table.append([*key, *(by_value.get(_plain(value), "–") for value in values)])
    yield from _aligned(table)
    if any(entry.mark for entry in found):
        yield LEGEND
    starts = sorted({entry.starts for entry in found if entry.value is not None})
    if starts:
        yield f"starts of a cell: {'–'.join(map(str, dict.fromkeys((starts[0], starts[-1]))))}"
    yield from _why(found)


def swept(found: Sequence[Entry]) -> list[str]:
    """The swept keys, in order."""
    return list(dict.fromkeys(key for entry in found for key in entry.settings))


def state_of(asked: SweepFile, state: CellState) -> str:
    """`queued`, `1 of 2 starts`, `running`, `failed`, `done`, or why it stopped before its most
    starts."""
    wanted = limits.wanted_starts(asked, state)
    if state.seen.live and not state.seen.interrupted and not state.seen.finished:
        return "running"
    if state.failures:
        return "failed"
    had = sum(not state.is_pending(n) for n in range(1, wanted + 1)) if state.seen.runs else 0
    if had < wanted:
        return f"{had} of {wanted} starts" if had else "queued"
    if asked.until and not cells.is_known(state, asked.until):
        return f"not within {asked.until.half_width_pct:g} % after {wanted} starts"
    return "done"


def _entry(asked: SweepFile, state: CellState, best: CellState | None) -> Entry:
    level = state.level(asked.metric)
    if asked.until and asked.until.metric == asked.metric:
        level = cells.known_level(state, asked.until)
    return Entry(
        cell=state.cell.slug,
        backend=state.cell.backend,
        settings=state.cell.settings,
        state=state_of(asked, state),
        metric=asked.metric,
        value=level.estimate.value,
        interval=level.estimate.interval,
        reason=level.estimate.reason,
        starts=level.starts,
        datasets=level.datasets,
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
    sides = (findings.by_start(best.group, metric), findings.by_start(state.group, metric))
    ratio = comparison.compare(metric, best.cell.slug, state.cell.slug, sides).ratio
    is_apart = ratio.interval is not None and not ratio.interval[0] <= 1 <= ratio.interval[1]
    return "" if is_apart else "~"


def write(path: Path, found: Sequence[Entry]) -> list[Path]:
    """matrix.csv and matrix.json in the sweep's folder."""
    keys = swept(found)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    fields = ("cell", "backend", "state", "metric", "value", "low", "high", "starts", "datasets")
    writer.writerow([*fields, *keys])
    for e in found:
        low, high = e.interval or (None, None)
        own = (e.cell, e.backend, e.state, e.metric, e.value, low, high, e.starts, e.datasets)
        writer.writerow([*own, *(e.settings.get(key) for key in keys)])
    contents = {"matrix.csv": out.getvalue().encode(), "matrix.json": formatted(found)}
    for name, data in contents.items():
        write_whole(path / name, data)
    return [path / name for name in contents]


def _values(found: Sequence[Entry], key: str | None) -> list[Any]:
    """The values of a swept key, each once, in order; None for cells that it does not concern."""
    values: list[Any] = []
    for entry in found:
        if (value := _plain(entry.settings.get(key or ""))) not in values:
            values.append(value)
    return values


def _plain(value: Any) -> Any:
    return shown(value) if value is not None else None


def _rows(
    found: Sequence[Entry], down: Sequence[str], across: str | None
) -> dict[tuple[str, ...], dict[Any, str]]:
    rows: dict[tuple[str, ...], dict[Any, str]] = {}
    for entry in found:
        key = (entry.backend, *(_shown(entry, name) for name in down))
        value = _plain(entry.settings.get(across)) if across else None
        rows.setdefault(key, {})[value] = entry.text
    return rows


def _shown(entry: Entry, key: str) -> str:
    return shown(entry.settings[key]) if key in entry.settings else "–"


def _aligned(table: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in itertools.zip_longest(*table, fillvalue="")]
    for row in table:
        cells = zip(row, widths, strict=False)
        yield "  " + "  ".join(f"{text:<{width}}" for text, width in cells).rstrip()


def _why(found: Sequence[Entry]) -> Iterator[str]:
    """Why there is no interval, each reason once."""
    for reason in dict.fromkeys(e.reason for e in found if e.value is not None and e.reason):
        yield f"no interval: {reason}"
