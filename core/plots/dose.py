"""Forced routing: a metric against the recorded skew, one curve a backend and pattern, natural
routing as a point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from core.analysis.dose_findings import DoseFindings
from core.analysis.dose_response import METRICS, Level, spanned
from core.errors import NoDataError
from core.experiment import dose
from core.plots.figure import Curve, Series
from core.stats.arrays import Floats

DoseAxis = Literal["cv", "rank"]
AXES: dict[DoseAxis, str] = {
    "cv": "recorded CV of expert load",
    "rank": "recorded max/mean of load over EP ranks",
}
LABELS = {
    "mean_ttft_ms": "mean TTFT, ms",
    "mean_tpot_ms": "mean TPOT, ms",
    "output_throughput": "output throughput, tok/s",
    "decode_step_ms": "median decode step, ms",
}
NATURAL = "natural"


def series(found: DoseFindings, metric: str, axis: DoseAxis = "cv", engine: str = "") -> Series:
    """Levels with their intervals; a colour a backend, a mark a curve. NoDataError where no curve
    has both."""
    if metric not in METRICS:
        raise NoDataError(
            f"{dose.NAME}: there is no curve of {metric!r}; there are {', '.join(METRICS)}"
        )
    backends = list(dict.fromkeys(curve.backend for curve in found.curves))
    told = [(c.backend, c.pattern, _on(c.levels, axis)) for c in found.curves if c.metric == metric]
    doses = [level for _, _, levels in told for level in levels]
    if not doses:
        raise NoDataError(f"{dose.NAME}: no dose has both {METRICS[metric][0]} and a {AXES[axis]}")
    told += [(n.backend, NATURAL, _on([n.at], axis)) for n in found.natural if n.metric == metric]
    drawn = [
        (backend, pattern, _points(levels, axis)) for backend, pattern, levels in told if levels
    ]
    counts = [level.n for level in doses]
    pooled = max(curve.datasets for curve in found.curves if curve.metric == metric)
    has_bars = any(level.value.interval for level in doses)
    return Series(
        f"{dose.NAME}: {LABELS[metric].split(',')[0]} against imposed skew",
        AXES[axis],
        LABELS[metric],
        engine=engine,
        note=f"n = {sum(counts)} runs"
        + f" of {pooled} datasets" * (pooled > 1)
        + f", {spanned(counts)} a dose; "
        + ("bars: 95 %" if has_bars else "too few for intervals")
        + "; natural routing: a reference",
        curves=tuple(
            Curve(f"{backend}, {pattern}", x, y, backends.index(backend), "doses", low, high, mark)
            for mark, (backend, pattern, (x, y, low, high)) in enumerate(drawn)
        ),
    )


def name(metric: str, axis: DoseAxis) -> str:
    """Of the file, without its ending: it sorts beside the natural plot of the metric, and is not
    taken for it."""
    return f"{metric}-forced-{axis}"


def csv_text(drawn: Series) -> str:
    """The points of the curves, one row each; empty where there is no interval."""
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
    return x, y, low, high


def _ends(curve: Curve) -> tuple[list[float], list[float]]:
    assert curve.low is not None  # `series` gives every curve both
    assert curve.high is not None
    return curve.low.tolist(), curve.high.tolist()
