"""What the router did: load of every layer and expert, CV over time with its noise floor, load of
every rank."""

from __future__ import annotations

import math

import numpy as np

from core.analysis.results import Results
from core.analysis.step_sample import StepSample
from core.errors import NoDataError
from core.experiment import plan
from core.plots import palette
from core.plots.figure import Bars, Curve, HeatMap, Series
from core.plots.latency import mean_interval
from core.plots.palette import Stroke
from core.stats import bootstrap
from core.stats.arrays import Floats

BINS = 24  # of one run's steps
MIN_BLOCKS = 3
MINUTES_FROM_S = 300
PHASES = {"prefill": palette.PREFILL, "decode": palette.DECODE}


def heat_map(sample: StepSample, subject: str, engine: str = "") -> HeatMap:
    """Load of each layer's experts over the fair share of that layer. NoDataError if no step was
    logged."""
    if not len(sample.rows):
        raise NoDataError(f"{subject}: its gate log has no steps of a run")
    counts = np.sum(sample.counts, axis=0)
    fair = counts.mean(axis=1, keepdims=True)
    return HeatMap(
        f"Expert load by layer: {subject}",
        "expert",
        "layer",
        np.divide(counts, fair, out=np.zeros_like(counts), where=fair > 0),
        "load over an even share (1 = even)",
        engine,
        f"n = {len(sample.rows):,} steps, {counts[0].sum():,.0f} routed tokens per layer",
        sample.layer_numbers,
    )


def cv_over_time(sample: StepSample, subject: str, engine: str = "") -> Series:
    """Mean per-step CV and noise floor, prefill and decode apart; one point per run, or for a
    single run one per stretch of steps.

    Bands: 95 % intervals of the mean, over blocks of neighbouring steps. NoDataError if no step was
    logged.
    """
    if not len(sample.rows):
        raise NoDataError(f"{subject}: its gate log has no steps of a run")
    seconds = (sample["start_ns"] - sample["start_ns"].min()) / 1e9
    unit, scale = ("min", 60) if seconds.max() >= MINUTES_FROM_S else ("s", 1)
    bins = (
        sample["run"]
        if len(sample.labels) > 1
        else np.floor(np.arange(len(seconds)) * BINS / len(seconds))
    )
    curves = [
        curve
        for phase, place in PHASES.items()
        for curve in _phase(sample, phase, place, seconds / scale, bins)
    ]
    per = "one point per run" if len(sample.labels) > 1 else f"up to {BINS} stretches of steps"
    return Series(
        f"CV of expert load over time: {subject}",
        f"time since the first step, {unit}",
        "per-step CV, mean over layers",
        engine=engine,
        note=f"n = {len(seconds):,} steps, {per}; floor: a fair router's CV",
        curves=tuple(curves),
    )


def _phase(sample: StepSample, phase: str, place: int, time: Floats, bins: Floats) -> list[Curve]:
    """The CV of one phase, and its floor where a step had two tokens."""
    of = (sample["prefill_tokens"] > 0) == (phase == "prefill")
    parts = sorted(
        (np.flatnonzero(of & (bins == b)) for b in np.unique(bins[of])),
        key=lambda part: time[part].mean(),
    )
    if not parts:
        return []
    x, y = (np.array([values[part].mean() for part in parts]) for values in (time, sample["cv"]))
    ends = np.array([block_interval(sample["cv"][part]) for part in parts])
    floors = [
        values[np.isfinite(values)] for values in (sample["floor_squared"][part] for part in parts)
    ]
    known = np.array([len(values) > 0 for values in floors])
    level = np.array([math.sqrt(values.mean()) for values in floors if len(values)])
    is_one = len({plan.dataset_of(label) for label in sample.labels}) == 1  # lines join no others
    strokes: tuple[Stroke, Stroke] = ("line", "dotted") if is_one else ("bars", "ticks")
    curve = Curve(f"{phase} CV", x, y, place, strokes[0], ends[:, 0], ends[:, 1])
    floor = Curve(f"{phase} noise floor", x[known], level, place, strokes[1])
    return [curve, floor] if known.any() else [curve]


def block_interval(values: Floats) -> tuple[float, float]:
    """The 95 % interval of the mean CV of neighbouring steps, by Student's t over blocks of
    n^(1/3); no end is below 0, since no CV is.

    nan below three blocks: t(1) of two is too wide to use.
    """
    length = math.ceil(bootstrap.block_length(len(values)))
    means = np.array([part.mean() for part in np.split(values, range(length, len(values), length))])
    ends = mean_interval(means) if len(means) >= MIN_BLOCKS else None
    return (max(ends[0], 0.0), ends[1]) if ends else (math.nan, math.nan)


def rank_load(group: Results, engine: str = "", label: str = "", place: int = 0) -> Bars:
    """The load of each rank of a backend, for the run with this `label` or for all runs; repeats
    that routed alike count once. NoDataError without expert parallelism."""
    found = {label: group.measured.get(label)} if label else group.routed
    runs = [measured for measured in found.values() if measured and measured.rank_loads]
    if not runs:
        raise NoDataError(
            f"{group.name} did not run with expert parallelism: it has no ranks to compare"
        )
    loads = np.array([m.rank_loads for m in runs], dtype=float)
    over_mean = loads / loads.mean(axis=1, keepdims=True)
    ends = np.array([mean_interval(rank) or (math.nan, math.nan) for rank in over_mean.T])
    busiest = float(np.mean([m.rank_imbalance for m in runs if m.rank_imbalance is not None]))
    return Bars(
        f"Load of each expert-parallel rank: {group.name}" + (f"/{label}" if label else ""),
        "rank",
        "load over the mean of ranks",
        tuple(f"r{i}" for i in range(loads.shape[1])),
        over_mean.mean(axis=0),
        place,
        np.maximum(ends[:, 0], 0.0),
        ends[:, 1],
        (("even", 1.0), ("busiest rank of a step, mean", busiest)),
        engine=engine,
        note=_rank_note(len(runs), 0 if label else len(group.measured) - len(group.routed)),
    )


def _rank_note(runs: int, alike: int) -> str:
    if runs == 1:
        return "n = 1 run; bars sum over its steps"
    bars = "bars sum over a run's steps; 95 % intervals over runs"
    left_out = f" ({alike} that routed like another repeat left out)" if alike else ""
    return f"n = {runs} runs{left_out}; {bars}"
