"""What the forced-routing runs of a run directory say: curves, crossings, hot-rank against spread,
in words."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec
from msgspec.structs import replace

from core.analysis import dose_pairs, dose_response, dose_sample
from core.analysis.dose_pairs import Crossing, RankWait
from core.analysis.dose_response import METRICS, Curve, Level
from core.analysis.dose_sample import DoseRun
from core.analysis.results import Results
from core.experiment import dose
from core.routing.imbalance import Imbalance
from core.rundir.result import Result
from core.stats import association

HEADLINE = "mean_tpot_ms"
ROTATING = "rotating"


class Natural(msgspec.Struct, frozen=True, kw_only=True):
    """A backend's metric where routing was its own, on the datasets of its curves: a reference, in
    no fit."""

    backend: str
    metric: str
    at: Level


class DoseFindings(msgspec.Struct, frozen=True, kw_only=True):
    """`left_out`: forced runs that no curve counts. Intervals are 95 %, each on its own; p is
    corrected."""

    curves: list[Curve] = []
    crossings: list[Crossing] = []
    rank_waits: list[RankWait] = []
    natural: list[Natural] = []
    left_out: dict[str, str] = {}
    sentences: list[str] = []

    @property
    def headlines(self) -> list[str]:
        """The sentences about TPOT, which the end of a batch prints."""
        return self.sentences_about([HEADLINE])

    def sentences_about(self, metrics: Collection[str]) -> list[str]:
        return [
            f"{dose.NAME}, {one.in_words()}" for one in _by_metric(self) if one.metric in metrics
        ]


def find(groups: Sequence[Results]) -> DoseFindings:
    """Empty where no run's routing was forced."""
    return of_runs([run for group in groups for run in runs_of(group)])


def of_runs(runs: Sequence[DoseRun]) -> DoseFindings:
    found = DoseFindings(
        curves=dose_response.curves(runs),
        crossings=dose_pairs.crossings(runs),
        rank_waits=dose_pairs.rank_waits(runs),
        natural=_natural(runs),
        left_out=_left_out(runs),
    )
    found = _corrected(found)
    return replace(found, sentences=found.sentences_about(METRICS))


def _corrected(found: DoseFindings) -> DoseFindings:
    """Holm's correction over every slope, every bend and every difference of hot-rank to spread."""
    curves, waits = found.curves, found.rank_waits
    ps = iter(
        association.holm(
            [*(c.p for c in curves), *(c.p_bend for c in curves), *(w.p for w in waits)]
        )
    )
    curves = [replace(curve, p_holm=next(ps)) for curve in curves]
    curves = [replace(curve, p_bend_holm=next(ps)) for curve in curves]
    return replace(
        found, curves=curves, rank_waits=[replace(wait, p_holm=next(ps)) for wait in waits]
    )


def runs_of(group: Results) -> list[DoseRun]:
    """A backend's forced runs, and its natural ones."""
    return [
        _run(group.name, label, result)
        for results in (group.forced, group.by_label if group.forced else {})
        for label, result in results.items()
    ]


def _by_metric(found: DoseFindings) -> list[Curve | Crossing | RankWait]:
    every: tuple[Curve | Crossing | RankWait, ...] = (
        *found.curves,
        *found.crossings,
        *found.rank_waits,
    )
    return [one for metric in METRICS for one in every if one.metric == metric]


def _run(backend: str, label: str, result: Result) -> DoseRun:
    found = dose.of_label(label)
    forced = found if isinstance(found, dose.Dose) else None
    measured = result.measured_imbalance
    values = {metric: value for metric in METRICS if (value := result.number(metric)) is not None}
    return DoseRun(
        backend=backend,
        label=label,
        pattern=forced.pattern if forced else "",
        level=forced.level if forced else 0.0,
        cv=_recorded_cv(forced, measured) if measured else None,
        rank=measured.rank_imbalance if measured else None,
        values=values,
    )


def _recorded_cv(forced: dose.Dose | None, measured: Imbalance) -> float | None:
    """The aggregated CV; where the heat moves within a run, which evens that out, the excess CV of
    its steps."""
    moves = forced is not None and forced.pattern == ROTATING and forced.level > 0
    return measured.excess_cv if moves else measured.aggregated_cv


def _natural(runs: Sequence[DoseRun]) -> list[Natural]:
    found = []
    for backend in dict.fromkeys(r.backend for r in runs):
        used = {r.dataset for r in runs if r.pattern and r.backend == backend}
        for metric in METRICS:
            levels = dose_response.levels_of(
                dose_sample.respond(runs, backend, "", metric, datasets=used)
            )
            found += [Natural(backend=backend, metric=metric, at=level) for level in levels]
    return found


def _left_out(runs: Sequence[DoseRun]) -> dict[str, str]:
    """Run id → why no curve counts it."""
    forced = [r for r in runs if r.pattern]
    reasons = {
        f"{r.backend}/{r.label}": "no CV of its load was recorded" for r in forced if r.cv is None
    }
    for backend, pattern in dict.fromkeys((r.backend, r.pattern) for r in forced):
        own = [
            r for r in forced if (r.backend, r.pattern) == (backend, pattern) and r.cv is not None
        ]
        counted = {r.dataset for r in dose_sample.balanced(own)[0]}
        why = f"its dataset lacks a level of {pattern}"
        reasons |= {f"{backend}/{r.label}": why for r in own if r.dataset not in counted}
    return reasons
