"""Step time against the busiest rank's load as measured, and against its work with the batch held
fixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from core.analysis import cost_model
from core.analysis.cost_model import MIN_STEPS
from core.analysis.step_sample import StepSample
from core.errors import NoDataError
from core.plots import palette
from core.plots.figure import Curve, Points, Series
from core.stats import order
from core.stats.arrays import Floats

MAX_POINTS = 2_000  # more are thinned evenly
BINS = 10
SHOWN_BELOW = 99.0  # percentile of step time: a few slow steps would flatten all others


def step_time(sample: StepSample, backend: str, engine: str = "", place: int = 0) -> list[Series]:
    """Two panels of decode steps: time against max/mean load; with the batch held fixed, against
    the work of the busiest rank, where the cost model has one.

    Steps with few tokens are both quick and uneven, which the first panel shows and the second
    takes out. NoDataError below 50 decode steps.
    """
    decode = sample.of_phase("decode")
    if len(decode.rows) < MIN_STEPS:
        raise NoDataError(
            f"{backend}: {len(decode.rows)} decode steps in its gate log, {MIN_STEPS} are needed"
        )
    ms = decode["duration_us"] / 1e3
    ratio = 1 + decode["extra"] / decode["mean_load"]
    over = f"max/mean load over {sample.unit}s, mean over layers"
    panels = [
        _panel(f"Decode step time: {backend}", (ratio, over), ms),
        *_against_work(decode, backend),
    ]
    return [replace(p, engine=engine, groups=_coloured(p.groups, place)) for p in panels]


def _coloured(groups: Sequence[Points], place: int) -> tuple[Points, ...]:
    return tuple(replace(points, place=place) for points in groups)


def _against_work(decode: StepSample, backend: str) -> list[Series]:
    """Time with the batch held fixed, against what the cost model makes of the work."""
    model = cost_model.fit(decode, "decode")
    if model.reason:
        return []
    held, work = cost_model.held_fixed(model, decode) / 1e3, model.work_us(decode) / 1e3
    rest = float(np.median(held - work))
    ends = np.array([work.min(), work.max()])
    is_seen = any(model.terms[name].excludes_zero for name in model.costs)
    line = Curve("cost model", ends, ends + rest, palette.FIT, "fit") if is_seen else None
    title = f"The same with the mean batch of {decode['tokens'].mean():.1f} tokens: {backend}"
    along = f"work of the busiest rank, by {model.by}, ms"
    return [_panel(title, (work, along), held, line)]


def _panel(title: str, along: tuple[Floats, str], y: Floats, *curves: Curve | None) -> Series:
    x, x_label = along
    thin = slice(None, None, -(-len(x) // MAX_POINTS))
    cloud_x, cloud_y = x[thin], y[thin]
    slow = cloud_y > np.percentile(y, SHOWN_BELOW)
    points = Points("steps", (), cloud_x, cloud_y, np.zeros(len(cloud_x), np.bool_), far=slow)
    slowest = f"the slowest {100 - SHOWN_BELOW:.0f} %, up to {y.max():.4g} ms"
    drawn = f"; {len(cloud_x):,} drawn" if len(cloud_x) < len(x) else ""
    note = f"n = {len(x):,} decode steps{drawn}; {palette.CARET} off the scale: {slowest}"
    bins = binned_medians(x, y)
    drawn_curves = (bins, *(curve for curve in curves if curve))
    return Series(title, x_label, "step time, ms", (points,), note=note, curves=drawn_curves)


def binned_medians(x: Floats, y: Floats) -> Curve:
    """Medians of y in bins of equally many x; with the 95 % interval of the median by order
    statistics, if steps are independent."""
    along_x = np.argsort(x, kind="stable")
    parts = [part for part in np.array_split(along_x, BINS) if len(part)]
    ends = np.array([order.interval(y[part], 0.5) for part in parts], np.float64)  # None as nan
    middle_x, middle_y = (np.array([np.median(v[part]) for part in parts]) for v in (x, y))
    name, low, high = "median per tenth of the steps", ends[:, 0], ends[:, 1]
    return Curve(name, middle_x, middle_y, palette.DECODE, "bars", low, high)
