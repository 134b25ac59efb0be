"""A metric of every run against an imbalance, with intervals, and a line where the findings detect
an association."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from core.analysis.results import Results, iqr_outliers
from core.errors import NoDataError
from core.plots import labels, palette
from core.plots.figure import Curve, Points, Series
from core.plots.labels import Axis
from core.plots.latency import mean_interval, per_request
from core.rundir.result import Result
from core.stats import bootstrap
from core.stats.arrays import Floats
from core.stats.bootstrap import Interval

if TYPE_CHECKING:
    from core.analysis.findings import Row

METRICS = ("mean_ttft_ms", "mean_tpot_ms", "output_throughput")  # drawn of every run directory
OVER_REQUESTS = {"mean_ttft_ms": "ttft", "mean_tpot_ms": "tpot", "mean_e2e_ms": "e2e"}
MEASURED: dict[Axis, str] = {
    "excess": "excess_squared",
    "per-step": "per_step_cv",
    "aggregated": "aggregated_cv",
}
GRID = 40  # places along x where a line's band is worked out
FAR = 3.0  # times: skew changes a metric by less, a stalled run by more
NAMED = 8  # points off the scale that the note names


def best_axis(groups: Sequence[Results]) -> Axis:
    """The most informative imbalance that most results have: excess CV², else per-step CV, else the
    prediction."""
    labels = [(group, label) for group in groups for label in group.by_label]
    measured: tuple[Axis, ...] = ("excess", "per-step")
    known = (
        axis
        for axis in measured
        if 2 * sum(g.x(i, axis) is not None for g, i in labels) > len(labels)
    )
    return next(known, "predicted")


def series(
    groups: Sequence[Results], metric: str, axis: Axis, engine: str = "", rows: Sequence[Row] = ()
) -> Series:
    """`metric` of each result against an imbalance axis. NoDataError where no result has both as
    numbers.

    `rows`: the findings' associations, which are with excess CV²: on that axis a backend whose
    association is detected gets a line.
    """
    places = palette.places([group.name for group in groups])
    points = [_points(g, metric, axis, places[g.name]) for g in groups]
    if not any(len(p.labels) for p in points):
        known = sorted({k for g in groups for r in g.by_label.values() for k in r.numbers})
        raise NoDataError(f"{_lacking(metric, axis)}; numeric results: {', '.join(known)}")
    seen = {
        row.backend: row
        for row in rows
        if axis == "excess" and row.metric == metric and row.association.is_monotone
    }
    drawn = of_points(points, metric, axis, engine, sum(len(g.by_label) for g in groups))
    fits = (_fit(p, seen[p.name]) for p in drawn.groups if p.name in seen)
    return replace(drawn, curves=tuple(fits))


def of_points(
    points: Sequence[Points], metric: str, axis: Axis, engine: str, results: int
) -> Series:
    """The same of each backend's points, out of so many results. NoDataError where there are no
    points."""
    if not any(len(p.labels) for p in points):
        raise NoDataError(_lacking(metric, axis))
    marked = _far_marked(points)
    return Series(
        f"{labels.short(metric)} against {labels.short_axis(axis)}",
        labels.AXES[axis],
        labels.metric(metric),
        marked,
        engine,
        _note(marked, results),
    )


def placed(name: str, place: int, rows: Sequence[tuple[str, float, float]]) -> Points:
    """A backend's points from (label, x, y), the outliers marked."""
    xs, ys = np.array([r[1] for r in rows]), np.array([r[2] for r in rows])
    outlier = iqr_outliers(xs) | iqr_outliers(ys)
    return Points(name, tuple(r[0] for r in rows), xs, ys, outlier, place=place)


def _note(points: Sequence[Points], results: int) -> str:
    """How many results are drawn, and which are not."""
    far = [
        f"{p.name}/{p.labels[i]} at {p.y[i]:.4g}" for p in points for i in np.flatnonzero(~p.drawn)
    ]
    shown = sum(int(p.drawn.sum()) for p in points)
    parts = [f"n = {shown}"]
    if far:
        more = " …" if len(far) > NAMED else ""
        parts.append(f"{palette.CARET} off the scale: {', '.join(far[:NAMED])}{more}")
    if lacking := results - shown - len(far):
        parts.append(f"{lacking} without both values")
    return "; ".join(parts)


def _lacking(metric: str, axis: Axis) -> str:
    return f"no result has both {metric!r} as a number and {_one(labels.short_axis(axis))}"


def _one(name: str) -> str:
    """`an excess CV`, `a per-step CV`."""
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _far_marked(points: Sequence[Points]) -> tuple[Points, ...]:
    """The points with those marked far whose metric is FAR times the largest that is no outlier:
    they would squeeze all others."""
    largest = max((float(p.y[~p.outlier].max(initial=0.0)) for p in points), default=0.0)
    return tuple(replace(p, far=p.y > FAR * largest) if largest else p for p in points)


def _points(group: Results, metric: str, axis: Axis, place: int) -> Points:
    rows = [
        (label, x, y)
        for label, result in group.by_label.items()
        if (x := group.x(label, axis)) is not None and (y := result.number(metric)) is not None
    ]
    results = [group.by_label[label] for label, _, _ in rows]
    return replace(
        placed(group.name, place, rows),
        x_interval=_intervals([_of_blocks(r, axis) for r in results]),
        y_interval=_intervals([_of_requests(r, metric) for r in results]),
    )


def _intervals(ends: Sequence[Interval | None]) -> Floats | None:
    return np.array([e or (np.nan, np.nan) for e in ends]) if any(ends) else None


def _of_blocks(result: Result, axis: Axis) -> Interval | None:
    """The interval that the run's own block bootstrap gave its imbalance."""
    measured = result.measured_imbalance
    ends = measured.intervals.get(MEASURED.get(axis, "")) if measured else None
    if ends is None or axis == "excess":  # which is signed
        return ends
    return max(ends[0], 0.0), ends[1]


def _of_requests(result: Result, metric: str) -> Interval | None:
    if metric not in OVER_REQUESTS:
        return None
    ends = mean_interval(per_request(result, OVER_REQUESTS[metric]))
    return ends and (max(ends[0], 0.0), ends[1])  # no time is below 0


def _fit(points: Points, row: Row) -> Curve:
    """The Theil-Sen line through the medians of all points, outliers included; its band is a
    bootstrap over datasets."""
    x, y = _by_dataset(points)
    grid = np.linspace(points.x[points.drawn].min(), points.x[points.drawn].max(), GRID)
    line = _theil_sen(x[None], y[None], grid)[0]
    drawn = np.random.default_rng(0).integers(0, len(x), (bootstrap.RESAMPLES, len(x)))
    lines = _theil_sen(x[drawn], y[drawn], grid)
    ends = [
        bootstrap.interval(float(line[i]), lines[:, i], len(x)) or (np.nan, np.nan)
        for i in range(GRID)
    ]
    change = f"{row.change.shown('+.2g')} {labels.unit(row.metric)}"
    name = f"{points.name}, Theil-Sen: {change} over the middle 80 %"
    low, high = np.array(ends).T
    return Curve(name, grid, line, points.place, "fit", np.maximum(low, 0.0), high)


def _by_dataset(points: Points) -> tuple[Floats, Floats]:
    """x and y, averaged over the repeats of each dataset as in the findings."""
    found: dict[str, list[int]] = defaultdict(list)
    for i, label in enumerate(points.labels):
        found[label.partition("-")[0]].append(i)
    means = [(points.x[i].mean(), points.y[i].mean()) for i in found.values()]
    return np.array([m[0] for m in means]), np.array([m[1] for m in means])


def _theil_sen(x: Floats, y: Floats, grid: Floats) -> Floats:
    """[resamples, grid]: the line of the median slope over pairs, through the medians, of each
    resample [., n]."""
    one, other = np.triu_indices(x.shape[1], 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        slopes = (y[:, other] - y[:, one]) / (x[:, other] - x[:, one])
    slope = np.nanmedian(np.where(np.isfinite(slopes), slopes, np.nan), axis=1, keepdims=True)
    return np.asarray(
        np.median(y, axis=1, keepdims=True) + slope * (grid - np.median(x, axis=1, keepdims=True))
    )
