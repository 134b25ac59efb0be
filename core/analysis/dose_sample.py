"""The runs of forced routing, and the values of a metric at each of their levels, from which curves
and pairs are estimated."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import msgspec
import numpy as np
import numpy.typing as npt

from core.experiment import plan
from core.stats import association, bootstrap, estimate
from core.stats.arrays import Floats
from core.stats.estimate import MIN_DATASETS, Estimate

RESAMPLES = 2_000


MIN_FREEDOM = 6  # runs beyond the first of each dataset and level


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
        Where one has too few runs for an interval, the difference has none either.
        """
        reason = self.reason or other.reason
        return Response(
            levels=self.levels,
            cv=(self.cv + other.cv) / 2,
            rank=(self.rank + other.rank) / 2,
            n=self.n + other.n,
            mean=self.mean - other.mean,
            drawn=np.zeros((0, len(self.levels))) if reason else self.drawn - other.drawn,
            units=min(self.units, other.units),
            datasets=self.datasets,
            reason=reason,
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


def is_seen(effect: Estimate, p_holm: float | None) -> bool:
    """Whether it differs from 0 significantly: by its interval, and after Holm's correction."""
    return effect.excludes_zero and (p_holm is None or p_holm < association.ALPHA)
