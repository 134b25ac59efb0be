"""What the router did: load of every layer and expert, CV over time with its noise floor, load of
every rank."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from core.analysis.results import Results
from core.analysis.step_sample import StepSample
from core.errors import NoDataError
from core.plots.figure import Bars, Curve, HeatMap, Series
from core.plots.latency import mean_interval
from core.stats import bootstrap
from core.stats.arrays import Floats

BINS = 24  # of one run's steps
MIN_BLOCKS = 3
MINUTES_FROM_S = 300
PHASES = ("prefill", "decode")


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
        for place, phase in enumerate(PHASES)
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
    curve = Curve(f"{phase} CV", x, y, place, "line", ends[:, 0], ends[:, 1])
    return (
        [curve, Curve(f"{phase} noise floor", x[known], level, place, "dotted")]
        if known.any()
        else [curve]
    )


def block_interval(values: Floats) -> tuple[float, float]:
    """The 95 % interval of the mean CV of neighbouring steps, by Student's t over blocks of
    n^(1/3); no end is below 0, since no CV is.

    nan below three blocks: t(1) of two is too wide to use.
    """
    length = math.ceil(bootstrap.block_length(len(values)))
    means = np.array([part.mean() for part in np.split(values, range(length, len(values), length))])
    ends = mean_interval(means) if len(means) >= MIN_BLOCKS else None
    return (max(ends[0], 0.0), ends[1]) if ends else (math.nan, math.nan)


def rank_load(groups: Sequence[Results], engine: str = "", label: str = "") -> list[Bars]:
    """A panel for each backend that ran with expert parallelism, for the run with this `label` or
    for all runs. NoDataError if none did.
    """
    panels = [
        panel
        for place, group in enumerate(groups)
        if (panel := _ranks(group, place, engine, label))
    ]
    if not panels:
        raise NoDataError(
            "no backend ran with expert parallelism, so there are no ranks to compare"
        )
    return panels


def _ranks(group: Results, place: int, engine: str, label: str) -> Bars | None:
    runs = [
        measured
        for key, measured in group.measured.items()
        if measured.rank_loads and (not label or key == label)
    ]
    if not runs:
        return None
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
        ends[:, 0],
        ends[:, 1],
        (("even", 1.0), ("busiest rank of a step, mean", busiest)),
        engine=engine,
        note=_rank_note(len(runs)),
    )


def _rank_note(runs: int) -> str:
    if runs == 1:
        return "n = 1 run; bars sum over its steps"
    return f"n = {runs} runs; bars sum over a run's steps; 95 % intervals over runs"
