"""The Series that the Plots pane draws and exports, from a Snapshot. Imports NumPy."""

from __future__ import annotations

from collections.abc import Sequence

from core.analysis import Results
from core.plots import scatter
from core.plots.figure import Series
from core.plots.scatter import Axis
from core.state import RunState, Snapshot


def of(snapshot: Snapshot, metric: str, axis: Axis) -> Series:
    """`metric` of every finished run whose routing was natural against `axis`. ConfigError where no run has both."""
    runs = [r for r in snapshot.runs.values() if r.figures and not r.run.dose]
    names = list(dict.fromkeys(r.run.backend for r in runs))
    groups = [_results(name, [r for r in runs if r.run.backend == name]) for name in names]
    return scatter.series(groups, metric, axis, snapshot.engine)


def csv_text(series: Series) -> str:
    """The points of a Series: one row each."""
    rows = [
        f"{group.name},{label},{x!r},{y!r},{int(outlier)}"
        for group in series.groups
        for label, x, y, outlier in zip(
            group.labels, group.x.tolist(), group.y.tolist(), group.outlier.tolist(), strict=True
        )
    ]
    return "\n".join([f'backend,dataset,{series.x_label},"{series.y_label}",outlier', *rows]) + "\n"


def _results(name: str, runs: Sequence[RunState]) -> Results:
    figures = {r.run.label: r.figures for r in runs if r.figures}
    return Results(
        name,
        {
            label: {
                "imbalance_score": f.score,
                "measured_imbalance": {"excess_cv": f.excess_cv},
                "output_throughput": f.output_throughput,
                **{f"mean_{m}_ms": latency.mean for m, latency in f.latencies.items()},
                **{f"median_{m}_ms": latency.p50 for m, latency in f.latencies.items()},
            }
            for label, f in figures.items()
        },
        {label: f.cv for label, f in figures.items() if f.cv is not None},
        {label: f.aggregated_cv for label, f in figures.items() if f.aggregated_cv is not None},
    )
