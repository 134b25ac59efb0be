"""Dose-response under forced routing: a metric against the recorded skew, level by level, with
intervals.

- A level's value is the mean over datasets of the means over repeats. A curve counts the datasets
  that ran every one of its levels, so that levels differ in their dose alone.
- Skew is what was recorded, not what was aimed at: the aggregated CV of expert load. Where the heat
  rotates it evens out over a run, so there it is the steps' excess CV. Beside it stands max/mean of
  load over EP ranks.
- From 8 datasets on, intervals are by the bootstrap over datasets: they speak for datasets like
  these. Below, over runs: the residuals of runs about the mean of their dataset and level are
  pooled and drawn, widened to as many degrees of freedom as there are runs beyond the first of each
  dataset and level: they speak for these datasets.
- The slope is the least squares line's through the levels' values: the mean slope over the doses.
  Where their quadratic part is seen a slope would mislead, so the rise over the lowest level is
  told instead. p is Student's, with the interval's degrees of freedom; Holm's correction is over
  all slopes, bends and differences told side by side.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import msgspec
import numpy as np
import numpy.typing as npt

from core.analysis.results import NAMES
from core.experiment import plan
from core.stats import association, bootstrap, estimate
from core.stats.arrays import Floats
from core.stats.estimate import MIN_DATASETS, Estimate

METRICS = {"mean_tpot_ms": NAMES["mean_tpot_ms"], "decode_step_ms": ("decode step", "ms")} | NAMES
HIGHER_IS_BETTER = {"output_throughput"}
RESAMPLES = 2_000
MIN_FREEDOM = 6  # runs beyond the first of each dataset and level
PER = 0.1  # of CV, and of max/mean: what slopes are told in; a skew that varies by less gives none
NO_DATASET = "no dataset ran every level"


class DoseRun(msgspec.Struct, frozen=True, kw_only=True):
    """One run. `pattern`: "" where routing was natural. `cv`, `rank`: as recorded; `values` by
    metric."""

    backend: str
    label: str
    pattern: str = ""
    level: float = 0.0
    cv: float | None
    rank: float | None = None
    values: dict[str, float]

    @property
    def dataset(self) -> str:
        return plan.dataset_of(self.label)


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """One dose of a curve: aimed at `level`, recorded `cv` and max/mean over ranks, n runs, and
    what the metric was.

    `over_lowest`: the difference to the curve's lowest level.
    """

    level: float
    cv: float
    rank: float | None
    n: int
    value: Estimate
    over_lowest: Estimate | None = None


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """A metric of one backend under one pattern. Slopes are per 0.1 of CV and of max/mean over
    ranks.

    `bend`: the quadratic part over the line. `p`, `p_bend`: two-sided, that the slope against CV,
    and the bend, are 0; `p_holm`, `p_bend_holm` corrected for all that is tested beside them.
    """

    backend: str
    pattern: str
    metric: str
    datasets: int
    levels: list[Level]
    per_cv: Estimate
    per_rank: Estimate
    p: float | None = None
    p_holm: float | None = None
    bend: Estimate
    p_bend: float | None = None
    p_bend_holm: float | None = None

    @property
    def is_seen(self) -> bool:
        return is_seen(self.per_cv, self.p_holm)

    @property
    def bends(self) -> bool:
        """Whether the levels do not lie on a straight line."""
        return is_seen(self.bend, self.p_bend_holm)

    @property
    def n(self) -> int:
        return sum(level.n for level in self.levels)

    def in_words(self) -> str:
        """One sentence with the interval, the doses and n."""
        name, unit = METRICS[self.metric]
        who = f"{self.pattern}: {self.backend} {name}"
        if self.per_cv.value is None:
            return f"{who}: no slope against imposed skew: {self.per_cv.reason}"
        if self.bends:
            return f"{who} follows imposed skew, but not on a straight line: {self._over_lowest()}"
        slope = f"{self.per_cv.shown('+.3g')} {unit} per {PER} of recorded CV"
        first, last = self.levels[0], self.levels[-1]
        n = counted(self.n, self.datasets)
        facts = f"{tested(self.p_holm)}doses {first.cv:.2f} to {last.cv:.2f}, {n}"
        if not self.is_seen:
            return f"{who}: no effect of imposed skew is detected ({slope}; {facts})"
        way = "rises" if self.per_cv.value > 0 else "falls"
        ends = f"from {first.value.value:.4g} to {last.value.value:.4g} {unit}"
        return f"{who} {way} with imposed skew: {slope}, {ends} ({facts})"

    def _over_lowest(self) -> str:
        unit = METRICS[self.metric][1]
        first = self.levels[0]
        rises = ", ".join(
            f"{o.shown('+.3g')} at {v.cv:.2f}" for v in self.levels[1:] if (o := v.over_lowest)
        )
        lowest = f"{first.value.value:.4g} {unit} at the lowest"
        facts = f"{tested(self.p_bend_holm)}{lowest}, {counted(self.n, self.datasets)}"
        return f"over the lowest dose {rises} of recorded CV, {unit} ({facts})"


@dataclass(frozen=True)
class Response:
    """The values of one metric by level, and what they might have been: `drawn` [resamples,
    levels], the rest [levels].

    `units`: what the intervals rest on, as `bootstrap.interval` counts them. `reason`: why there
    are no intervals.
    """

    levels: Floats
    cv: Floats
    rank: Floats  # nan without ranks
    n: npt.NDArray[np.int64]
    mean: Floats
    drawn: Floats
    units: int
    datasets: int
    reason: str | None = None

    def contrast(self, weights: Floats) -> Estimate:
        """The values' contrast, weighted by level."""
        if self.reason:
            return estimate.none(self.reason)
        return _estimate(float(self.mean @ weights), self.drawn @ weights, self.units)

    def p(self, weights: Floats) -> float | None:
        """Two-sided, that this contrast is 0, by Student's t; None where n supports none."""
        if self.reason:
            return None
        error = bootstrap.standard_error(self.drawn @ weights, self.units)
        if not error > 0:
            return None
        from scipy import stats

        return float(2 * stats.t.sf(abs(float(self.mean @ weights)) / error, self.units - 1))

    def less(self, other: Response) -> Response:
        """The difference to another response at the same levels and datasets; its skew is the mean
        of the two.

        Over datasets the two are drawn together, so that what a dataset does to both goes out.
        """
        return Response(
            levels=self.levels,
            cv=(self.cv + other.cv) / 2,
            rank=(self.rank + other.rank) / 2,
            n=self.n + other.n,
            mean=self.mean - other.mean,
            drawn=self.drawn - other.drawn,
            units=min(self.units, other.units),
            datasets=self.datasets,
            reason=self.reason or other.reason,
        )

    @cached_property
    def values(self) -> list[Estimate]:
        """The estimate of each level; without an interval where n supports none."""
        at = np.eye(len(self.levels))
        return [
            Estimate(float(v)) if self.reason else self.contrast(w)
            for v, w in zip(self.mean, at, strict=True)
        ]

    @cached_property
    def seen(self) -> list[bool]:
        """Whether each level differs from 0 significantly after Holm's correction."""
        ps = association.holm([self.p(at) for at in np.eye(len(self.levels))])
        return [is_seen(value, p) for value, p in zip(self.values, ps, strict=True)]


def is_seen(effect: Estimate, p_holm: float | None) -> bool:
    """Whether it differs from 0 significantly: by its interval, and after Holm's correction."""
    return effect.excludes_zero and (p_holm is None or p_holm < association.ALPHA)


def tested(p_holm: float | None) -> str:
    """The p value that a sentence's facts begin with."""
    if p_holm is None:
        return ""
    return f"p {'< 0.0001' if p_holm < 1e-4 else f'= {p_holm:.2g}'} after Holm; "


def counted(runs: int, datasets: int) -> str:
    return f"n = {runs} runs of {datasets} {'dataset' if datasets == 1 else 'datasets'}"


def spanned(counts: Sequence[int]) -> str:
    """`3`, or `2 to 3`."""
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def curves(runs: Sequence[DoseRun]) -> list[Curve]:
    """The curve of every backend, pattern and metric."""
    keys = dict.fromkeys((r.backend, r.pattern) for r in runs if r.pattern)
    made = [
        curve(runs, backend, pattern, metric) for backend, pattern in keys for metric in METRICS
    ]
    return [one for one in made if one.levels]


def curve(runs: Sequence[DoseRun], backend: str, pattern: str, metric: str) -> Curve:
    response = respond(runs, backend, pattern, metric)
    per_cv = slope(response, response.cv, "recorded CV")
    bending = _bending(response.cv)
    return Curve(
        backend=backend,
        pattern=pattern,
        metric=metric,
        datasets=response.datasets,
        levels=levels_of(response),
        per_cv=per_cv,
        per_rank=slope(response, response.rank, "max/mean over ranks"),
        p=None if per_cv.value is None else response.p(_line(response.cv)),
        bend=estimate.none("fewer than 3 levels")
        if bending is None
        else response.contrast(bending),
        p_bend=None if bending is None else response.p(bending),
    )


def respond(
    runs: Sequence[DoseRun],
    backend: str,
    pattern: str,
    metric: str,
    *,
    levels: Collection[float] | None = None,
    datasets: Collection[str] | None = None,
) -> Response:
    """The response of a backend's metric under a pattern, at those levels and of those datasets
    where given."""
    own = [
        r
        for r in sorted(
            runs, key=lambda r: r.label
        )  # the same draws in whatever order the runs were made
        if (r.backend, r.pattern) == (backend, pattern)
        and metric in r.values
        and r.cv is not None
        and (levels is None or r.level in levels)
        and (datasets is None or r.dataset in datasets)
    ]
    own, steps, complete = balanced(own)
    if not own:
        nothing = np.zeros(0)
        return Response(
            nothing,
            nothing,
            nothing,
            nothing.astype(int),
            nothing,
            np.zeros((0, 0)),
            0,
            0,
            NO_DATASET,
        )
    table = _Table(own, steps, complete, [r.values[metric] for r in own])
    drawn, units, reason = _drawn(table, seed=zlib.crc32(f"{backend}/{pattern}/{metric}".encode()))
    return Response(
        levels=np.array(steps),
        cv=table.over([r.cv for r in own]).mean(axis=0),
        rank=table.over([r.rank for r in own]).mean(axis=0),
        n=table.counts.sum(axis=0),
        mean=table.means.mean(axis=0),
        drawn=drawn,
        units=units,
        datasets=len(complete),
        reason=reason,
    )


def at_same_doses(
    runs: Sequence[DoseRun], metric: str, one: tuple[str, str], other: tuple[str, str]
) -> tuple[Response, Response]:
    """Two (backend, pattern) at the levels that both ran, of the datasets that ran those at
    both."""
    used = [r for r in runs if metric in r.values and r.cv is not None]
    ran = [
        {(r.dataset, r.level) for r in used if (r.backend, r.pattern) == key}
        for key in (one, other)
    ]
    levels = {level for _, level in ran[0]} & {level for _, level in ran[1]}
    both = ran[0] & ran[1]
    datasets = {name for name, _ in both if all((name, level) in both for level in levels)}
    made = (respond(used, *key, metric, levels=levels, datasets=datasets) for key in (one, other))
    return next(made), next(made)


def slope(response: Response, skew: Floats, name: str) -> Estimate:
    """The slope of the least squares line through the levels' values, per 0.1 of `skew`
    [levels]."""
    if len(skew) < 2:
        return estimate.none(response.reason or "one level gives no slope")
    if not np.isfinite(skew).all():
        return estimate.none(f"no {name} was recorded")
    if np.ptp(skew) < PER:
        return estimate.none(f"{name} varies by less than {PER} over the levels")
    return response.contrast(_line(skew))


def _line(skew: Floats) -> Floats:
    """The weights of the least squares slope, per 0.1."""
    off = skew - skew.mean()
    return np.asarray(PER * off / (off @ off))


def _bending(skew: Floats) -> Floats | None:
    """The weights of the quadratic part, in the metric's unit per CV²; None where no three levels
    differ."""
    if len(skew) < 3 or np.ptp(skew) < PER:
        return None
    line = np.column_stack([np.ones(len(skew)), skew])
    left = skew**2 - line @ np.linalg.lstsq(line, skew**2, rcond=None)[0]
    return np.asarray(left / (left @ left)) if left @ left > 1e-9 else None


def levels_of(response: Response) -> list[Level]:
    """A response as sentences and figures show it."""
    at = np.eye(len(response.levels))
    return [
        Level(
            level=float(response.levels[i]),
            cv=float(response.cv[i]),
            rank=float(response.rank[i]) if np.isfinite(response.rank[i]) else None,
            n=int(response.n[i]),
            value=value,
            over_lowest=response.contrast(at[i] - at[0]) if i else None,
        )
        for i, value in enumerate(response.values)
    ]


def balanced(runs: Sequence[DoseRun]) -> tuple[list[DoseRun], list[float], list[str]]:
    """The runs of the datasets that ran every level, those levels, those datasets."""
    levels = sorted({r.level for r in runs})
    ran: dict[str, set[float]] = {}
    for r in runs:
        ran.setdefault(r.dataset, set()).add(r.level)
    complete = sorted(name for name, own in ran.items() if len(own) == len(levels))
    return [r for r in runs if r.dataset in complete], levels if complete else [], complete


class _Table:
    """Runs by dataset and level. `cell` [runs]: where each belongs; `counts`, `means` [datasets,
    levels]."""

    def __init__(
        self, runs: Sequence[DoseRun], levels: list[float], datasets: list[str], values: list[float]
    ) -> None:
        self.shape = len(datasets), len(levels)
        self.cell = np.array(
            [datasets.index(r.dataset) * len(levels) + levels.index(r.level) for r in runs],
            dtype=int,
        )
        self.counts = np.bincount(self.cell, minlength=len(datasets) * len(levels)).reshape(
            self.shape
        )
        self.values = np.array(values)
        self.means = self.over(values)

    def over(self, values: Sequence[float | None]) -> Floats:
        """Means over repeats [datasets, levels]; nan where one is not known."""
        known = np.array([np.nan if v is None else v for v in values])
        return (
            np.bincount(self.cell, known, minlength=self.counts.size).reshape(self.shape)
            / self.counts
        )


def _drawn(table: _Table, seed: int) -> tuple[Floats, int, str | None]:
    """Replicates [resamples, levels] of the levels' values, the units of their intervals, or why
    there are none."""
    datasets, levels = table.shape
    if datasets >= MIN_DATASETS:
        return bootstrap.weights(datasets, RESAMPLES) @ table.means / datasets, datasets, None
    freedom = len(table.values) - datasets * levels
    if freedom < MIN_FREEDOM:
        return np.zeros((0, levels)), 0, _too_few(datasets, levels)
    left = table.values - table.means.ravel()[table.cell]
    left *= np.sqrt(len(left) / (freedom + 1))  # bootstrap.interval widens by the rest
    weights = np.zeros((len(left), levels))
    weights[np.arange(len(left)), table.cell % levels] = 1 / (
        table.counts.ravel()[table.cell] * datasets
    )
    draws = np.random.default_rng(seed).integers(0, len(left), (RESAMPLES, len(left)))
    return table.means.mean(axis=0) + left[draws] @ weights, freedom + 1, None


def _too_few(datasets: int, levels: int) -> str:
    repeats = 1 + -(-MIN_FREEDOM // (datasets * levels))
    at = "1 level" if levels == 1 else f"{levels} levels"
    ran = f"{datasets} {'dataset' if datasets == 1 else 'datasets'} at {at}"
    return f"too few runs to say: {ran} need {repeats} repeats of each, or {MIN_DATASETS} datasets"


def _estimate(value: float, replicates: Floats, units: int) -> Estimate:
    return estimate.of(value, bootstrap.interval(value, replicates, units))
