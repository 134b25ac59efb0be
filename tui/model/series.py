"""The Series that Plots and the dose screen draw and export, from a Snapshot. Imports NumPy."""

from __future__ import annotations

from collections.abc import Sequence

from core.analysis.results import Results
from core.experiment.events import RunFigures
from core.experiment.state import RunState, Snapshot
from core.plots import palette, scatter
from core.plots.figure import Series
from core.plots.labels import Axis
from core.routing.imbalance import Imbalance
from core.rundir.result import Result


def of(snapshot: Snapshot, metric: str, axis: Axis) -> Series:
    """`metric` against `axis`, for every finished run with natural routing. NoDataError if no run
    has both.

    Straight from the figures: an analysis' Result of each run would take 2.5 kB, again at every
    run's end.
    """
    rows: dict[str, list[tuple[str, float, float]]] = {}
    results = 0
    for run in snapshot.runs.values():
        own = rows.setdefault(run.run.backend, [])
        if run.figures is None or run.run.imposed:
            continue
        results += 1
        x, y = _imbalance(run.figures, axis), _number(run.figures, metric)
        if x is not None and y is not None:
            own.append((run.run.label, x, y))
    places = palette.places(list(rows))  # also of backends without a result: colours stay
    points = [scatter.placed(name, places[name], own) for name, own in rows.items() if own]
    return scatter.of_points(points, metric, axis, snapshot.engine, results)


def _imbalance(figures: RunFigures, axis: Axis) -> float | None:
    match axis:
        case "excess":
            return None if figures.excess_cv is None else figures.excess_cv**2
        case "per-step":
            return figures.cv
        case "aggregated":
            return figures.aggregated_cv
        case _:
            return figures.score


def _number(figures: RunFigures, metric: str) -> float | None:
    """`mean_tpot_ms`, `output_throughput`: as the keys of a result are called."""
    if metric == "output_throughput":
        return figures.output_throughput
    found = figures.latencies.get(metric.removeprefix("mean_").removesuffix("_ms"))
    return found.mean if found else None


def groups(snapshot: Snapshot) -> list[Results]:
    """The finished runs of every backend, as the analysis reads them."""
    runs = [r for r in snapshot.runs.values() if r.figures]
    names = list(dict.fromkeys(r.run.backend for r in runs))
    return [_results(name, [r for r in runs if r.run.backend == name]) for name in names]


def csv_text(series: Series) -> str:
    """The points of a Series, one row each."""
    rows = [
        f"{group.name},{label},{x!r},{y!r},{int(outlier)}"
        for group in series.groups
        for label, x, y, outlier in zip(
            group.labels, group.x.tolist(), group.y.tolist(), group.outlier.tolist(), strict=True
        )
    ]
    return "\n".join([f'backend,dataset,{series.x_label},"{series.y_label}",outlier', *rows]) + "\n"


def _results(name: str, runs: Sequence[RunState]) -> Results:
    natural = {r.run.label: r.figures for r in runs if r.figures and not r.run.imposed}
    forced = {r.run.label: r.figures for r in runs if r.figures and r.run.dose}
    return Results(
        name,
        {label: _result(f) for label, f in natural.items()},
        {label: f.cv for label, f in natural.items() if f.cv is not None},
        {label: f.aggregated_cv for label, f in natural.items() if f.aggregated_cv is not None},
        {label: _result(f) for label, f in forced.items()},
    )


def _result(figures: RunFigures) -> Result:
    """The part of a result file that the figures of a run hold."""
    mean = {name: latency.mean for name, latency in figures.latencies.items()}
    median = {name: latency.p50 for name, latency in figures.latencies.items()}
    return Result(
        imbalance_score=figures.score,
        measured_imbalance=Imbalance(
            excess_cv=figures.excess_cv,
            aggregated_cv=figures.aggregated_cv,
            rank_imbalance=figures.rank_imbalance,
        ),
        output_throughput=figures.output_throughput,
        decode_step_ms=figures.decode_step_ms,
        mean_ttft_ms=mean.get("ttft"),
        mean_tpot_ms=mean.get("tpot"),
        mean_itl_ms=mean.get("itl"),
        mean_e2e_ms=mean.get("e2e"),
        median_ttft_ms=median.get("ttft"),
        median_tpot_ms=median.get("tpot"),
        median_itl_ms=median.get("itl"),
        median_e2e_ms=median.get("e2e"),
    )
