"""Forced routing: a metric against the recorded skew, one curve per backend and pattern, natural
routing as a point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from core.analysis.dose_findings import DoseFindings
from core.analysis.dose_response import METRICS, Level, spanned
from core.errors import NoDataError
from core.experiment import dose
from core.plots import labels, palette
from core.plots.figure import Curve, Series
from core.stats.arrays import Floats

DoseAxis = Literal["cv", "rank"]
AXES: dict[DoseAxis, str] = {
    "cv": "recorded CV of expert load",
    "rank": "recorded max/mean of load over EP ranks",
}
NATURAL = "natural"


def series(found: DoseFindings, metric: str, axis: DoseAxis = "cv", engine: str = "") -> Series:
    """Levels with their intervals; one colour per backend, one mark per curve. NoDataError if no
    forced run has both values."""
    if metric not in METRICS:
        raise NoDataError(f"{dose.NAME} is not drawn for {metric!r}, only for {', '.join(METRICS)}")
    places = palette.places([curve.backend for curve in found.curves])
    curves = [
        (c.backend, c.pattern, _on(c.levels, axis)) for c in found.curves if c.metric == metric
    ]
    doses = [level for _, _, levels in curves for level in levels]
    if not found.curves:
        raise NoDataError(f"this run has no forced routing; to measure it: {dose.EXAMPLE}")
    if not doses:
        raise NoDataError(f"no forced run has both {METRICS[metric][0]} and a {AXES[axis]}")
    curves += [(n.backend, NATURAL, _on([n.at], axis)) for n in found.natural if n.metric == metric]
    drawn = [
        (backend, pattern, _points(levels, axis)) for backend, pattern, levels in curves if levels
    ]
    return Series(
        f"{dose.NAME}: {labels.short(metric)} against imposed skew",
        AXES[axis],
        labels.metric(metric),
        engine=engine,
        note=_note(doses, max(c.datasets for c in found.curves if c.metric == metric)),
        curves=tuple(
            Curve(f"{backend}, {pattern}", x, y, places[backend], "doses", low, high, mark)
            for mark, (backend, pattern, (x, y, low, high)) in enumerate(drawn)
        ),
    )


def _note(doses: Sequence[Level], datasets: int) -> str:
    """How many runs the curves are made of, and what their bars are."""
    counts = [level.n for level in doses]
    pooled = f" of {datasets} datasets" if datasets > 1 else ""
    bars = any(level.value.interval for level in doses)
    return (
        f"n = {sum(counts)} runs{pooled}, {spanned(counts)} per level; "
        f"{'bars: 95 %' if bars else 'too few for intervals'}; natural routing: a reference"
    )


def name(metric: str, axis: DoseAxis) -> str:
    """The file's name without its suffix: it sorts beside the natural plot of the metric and cannot
    be confused with it."""
    return f"{metric}-forced-{axis}"


def csv_text(drawn: Series) -> str:
    """The points of the curves, one row each; the ends are empty where there is no interval."""
    rows = [
        f'"{curve.name}",{x!r},{y!r},'
        + ",".join("" if np.isnan(end) else repr(end) for end in ends)
        for curve in drawn.curves
        for x, y, *ends in zip(curve.x.tolist(), curve.y.tolist(), *_ends(curve), strict=True)
    ]
    return (
        "\n".join(
            [f'"{dose.NAME}: backend, pattern",{drawn.x_label},"{drawn.y_label}",low,high', *rows]
        )
        + "\n"
    )


def _on(levels: Sequence[Level], axis: DoseAxis) -> list[Level]:
    return [level for level in levels if (level.cv if axis == "cv" else level.rank) is not None]


def _points(levels: Sequence[Level], axis: DoseAxis) -> tuple[Floats, Floats, Floats, Floats]:
    """x, y, low, high."""
    rows = [
        (
            level.cv if axis == "cv" else level.rank,
            level.value.value,
            *(level.value.interval or (np.nan, np.nan)),
        )
        for level in levels
    ]
    x, y, low, high = np.array(rows, dtype=float).T
    return x, y, np.maximum(low, 0.0), high  # no time and no rate is below 0


def _ends(curve: Curve) -> tuple[list[float], list[float]]:
    assert curve.low is not None  # `series` gives every curve both
    assert curve.high is not None
    return curve.low.tolist(), curve.high.tolist()
