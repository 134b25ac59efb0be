"""Figures of cells, each a point at the mean of its starts: throughput, and energy, against latency
with their frontiers, and the router's imbalance against the load."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from core.analysis.across import ROUTING
from core.analysis.comparand import Comparand
from core.errors import NoDataError, UsageError
from core.plots import labels, palette
from core.plots.figure import Curve, Points, Series
from core.stats import level
from core.stats.arrays import Floats
from core.stats.estimate import Estimate

LATENCY = ("mean_tpot_ms", "mean_ttft_ms", "mean_e2e_ms")
THROUGHPUT = "output_throughput"
ENERGY = "j_per_output_token"
FAR = 1.5  # bars reach so many times beyond the points: two starts would squeeze them to one
CUT = "cut where they leave the figure"
NAMED = 8  # cells of the frontier that the note names
NONE = (np.nan, np.nan)


class Load(NamedTuple):
    """An axis of load: its name, the key of it in what was asked, and its value for a cell, None
    where there is none."""

    name: str
    key: str
    value: Callable[[Comparand], float | str]

    def of(self, cell: Comparand) -> float | None:
        found = self.value(cell)
        return float(found) if not isinstance(found, str) and found > 0 else None


LOADS = (
    Load(
        "requests in flight at most (max_concurrency)",
        "max_concurrency",
        lambda c: c.config.experiment.max_concurrency,
    ),
    Load(
        "requests per second (request_rate)",
        "request_rate",
        lambda c: c.config.experiment.request_rate,
    ),
    Load(
        "requests of a step at most (max_num_seqs)", "max_num_seqs", lambda c: c.asked.max_num_seqs
    ),
)


class Aim(NamedTuple):
    """What is set against latency: a figure of results, its axis, and which way is better."""

    key: str
    title: str
    label: str
    of: Callable[[Comparand], float]  # what a cell's value is divided by
    is_more_better: bool


RATE = Aim(
    THROUGHPUT,
    "throughput",
    "output throughput per GPU (or rank), tok/s",
    lambda cell: float(cell.asked.ranks),
    is_more_better=True,
)
JOULES = Aim(
    ENERGY,
    labels.short(ENERGY),
    labels.metric(ENERGY),
    lambda _: 1.0,
    is_more_better=False,
)


def pareto(cells: Sequence[Comparand], metric: str) -> list[Series]:
    """Throughput per rank against `metric`, and where NVML gave it energy per token against the
    same, each with the cells that none beats in both. NoDataError if no cell has a throughput."""
    if metric not in LATENCY:
        raise UsageError(f"--metric {metric}: pareto takes one of {', '.join(LATENCY)}")
    panels = [panel for aim in (RATE, JOULES) if (panel := _traded(cells, metric, aim))]
    if not panels:
        raise NoDataError(f"no cell has both {labels.short(metric)} and a throughput")
    return panels


def _traded(cells: Sequence[Comparand], metric: str, aim: Aim) -> Series | None:
    known = [cell for cell in cells if all(_of(cell, key).value for key in (metric, aim.key))]
    if not known:
        return None
    best = frontier(known, metric, aim)
    names = palette.places([cell.backend for cell in known])
    starts = sorted({len(cell.group.by_start(metric)) for cell in known})
    return Series(
        f"{aim.title} against {labels.short(metric)}",
        labels.metric(metric),
        aim.label,
        _cut(
            [
                _points([c for c in known if c.backend == name], metric, aim, place)
                for name, place in names.items()
            ]
        ),
        known[0].engine,
        _note(best, len(known), len(cells), starts),
        (Curve("frontier", _values(best, metric), _shares(best, aim), palette.FIT, "dotted"),),
    )


def frontier(cells: Sequence[Comparand], metric: str, aim: Aim = RATE) -> list[Comparand]:
    """The cells that no other beats in both, by latency; by their means alone."""
    better = 1 if aim.is_more_better else -1

    def latency(cell: Comparand) -> float:
        return _of(cell, metric).value or 0.0

    def worth(cell: Comparand) -> float:
        return better * (_of(cell, aim.key).value or 0.0) / aim.of(cell)

    kept: list[Comparand] = []
    for cell in sorted(cells, key=lambda one: (latency(one), -worth(one))):
        if not kept or worth(cell) > worth(kept[-1]):
            kept.append(cell)
    return kept


def against_load(cells: Sequence[Comparand]) -> list[Series]:
    """A panel for each measure of the routing: how it goes with the load, one curve for the cells
    that differ in nothing else. NoDataError where no load differs, or nothing was measured."""
    axis = next((one for one in LOADS if len({one.of(cell) for cell in cells}) > 1), None)
    if axis is None:
        raise NoDataError(
            "the cells do not differ in load: sweep experiment.max_concurrency,"
            " experiment.request_rate or backends.*.max_num_seqs"
        )
    groups = _alike(cells, axis)
    panels = [panel for key in ROUTING if (panel := _against(groups, axis, key)) is not None]
    if not panels:
        raise NoDataError("no routing was measured in two cells of different load")
    return panels


def _against(groups: Mapping[str, Sequence[Comparand]], axis: Load, measure: str) -> Series | None:
    places = palette.places([cell.backend for own in groups.values() for cell in own])
    curves = [
        curve
        for mark, (name, own) in enumerate(groups.items())
        if (curve := _curve(name, own, axis, measure, places[own[0].backend], mark))
    ]
    if not curves:
        return None
    return Series(
        f"{ROUTING[measure]} against load",
        axis.name,
        ROUTING[measure],
        engine=next(iter(groups.values()))[0].engine,
        note=f"means of starts; bars: 95 % over starts, where there are two or more, {CUT}",
        curves=tuple(_cut_curve(curve, np.concatenate([c.y for c in curves])) for curve in curves),
    )


def _curve(
    name: str, cells: Sequence[Comparand], axis: Load, measure: str, place: int, mark: int
) -> Curve | None:
    found = {
        load: estimate
        for cell in cells
        if (load := axis.of(cell)) and (estimate := _of(cell, measure)).value is not None
    }
    if len(found) < 2:
        return None
    rows = [(load, found[load].value, *(found[load].interval or NONE)) for load in sorted(found)]
    x, y, low, high = np.array(rows, np.float64).T
    return Curve(name, x, y, place, "doses", low, high, mark)


def _alike(cells: Sequence[Comparand], axis: Load) -> dict[str, list[Comparand]]:
    """Cells that differ in their load alone, by backend and by what else differs between them."""
    groups: dict[str, list[Comparand]] = {}
    for cell in cells:
        same = [one for one in cells if one.backend == cell.backend]
        facts = [{**one.server, **one.load} for one in same]
        own = {**cell.server, **cell.load}
        apart = [k for k in own if k != axis.key and len({one.get(k) for one in facts}) > 1]
        name = ", ".join([cell.backend, *(f"{key}={own[key]}" for key in apart)])
        groups.setdefault(name, []).append(cell)
    return groups


def _points(cells: Sequence[Comparand], metric: str, aim: Aim, place: int) -> Points:
    return Points(
        cells[0].backend,
        tuple(cell.name for cell in cells),
        _values(cells, metric),
        _shares(cells, aim),
        np.zeros(len(cells), np.bool_),
        _ends(cells, metric),
        _ends(cells, aim.key) / _divisors(cells, aim)[:, None],
        place=place,
    )


def _cut(groups: Sequence[Points]) -> tuple[Points, ...]:
    """The points with their intervals inside the figure."""
    xs, ys = (np.concatenate(values) for values in ([g.x for g in groups], [g.y for g in groups]))
    return tuple(
        replace(g, x_interval=_inside(g.x_interval, xs), y_interval=_inside(g.y_interval, ys))
        for g in groups
    )


def _cut_curve(curve: Curve, ys: Floats) -> Curve:
    return replace(curve, low=_inside(curve.low, ys), high=_inside(curve.high, ys))


def _inside(ends: Floats | None, values: Floats) -> Floats | None:
    return None if ends is None else np.clip(ends, values.min() / FAR, values.max() * FAR)


def _of(cell: Comparand, key: str) -> Estimate:
    return level.of_side(cell.group.by_start(key)).estimate


def _values(cells: Sequence[Comparand], key: str) -> Floats:
    return np.array([_of(cell, key).value or np.nan for cell in cells])


def _ends(cells: Sequence[Comparand], key: str) -> Floats:
    return np.array([_of(cell, key).interval or (np.nan, np.nan) for cell in cells])


def _shares(cells: Sequence[Comparand], aim: Aim) -> Floats:
    return _values(cells, aim.key) / _divisors(cells, aim)


def _divisors(cells: Sequence[Comparand], aim: Aim) -> Floats:
    return np.array([aim.of(cell) for cell in cells])


def _note(best: Sequence[Comparand], known: int, cells: int, starts: Sequence[int]) -> str:
    more = " …" if len(best) > NAMED else ""
    counts = "–".join(map(str, dict.fromkeys((starts[0], starts[-1]))))
    lacking = f"; {cells - known} cells without both values" if cells > known else ""
    return (
        f"n = {known} cells, starts of each: {counts}, bars: 95 % over starts, {CUT}; frontier, by"
        f" the means:"
        f" {'; '.join(cell.name for cell in best[:NAMED])}{more}{lacking}"
    )
