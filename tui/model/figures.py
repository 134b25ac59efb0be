"""Figures that panes compute from a Snapshot: percentiles of the run in progress, rates between
samples."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from core.experiment.events import Latency, Sampled
from core.experiment.state import RunState, Snapshot
from core.plots.labels import LATENCIES

FROM_N = 100  # p99 of fewer values is their maximum


def latency(values: Sequence[float]) -> Latency | None:
    """Mean and percentiles (linear, as NumPy's) of values in ms; None if there are none."""
    if not values:
        return None
    ordered = sorted(values)
    p99 = percentile(ordered, 0.99) if len(ordered) >= FROM_N else None
    return Latency(
        n=len(ordered),
        mean=sum(ordered) / len(ordered),
        p50=percentile(ordered, 0.5),
        p90=percentile(ordered, 0.9),
        p99=p99,
        max=ordered[-1],
    )


def percentile(ordered: Sequence[float], q: float) -> float:
    """The q-quantile of sorted values, linear between neighbours."""
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def latencies(snapshot: Snapshot, run: RunState) -> dict[str, Latency]:
    """A finished run's latencies; for the run in progress, those of the requests finished so
    far."""
    if run.figures:
        return run.figures.latencies
    live = snapshot.live
    if live is None or live.run != run.run.id:
        return {}
    found = {name: latency(getattr(live, f"{name}_ms")) for name in LATENCIES}
    return {name: value for name, value in found.items() if value}


def rates(samples: Sequence[Sampled], field: str) -> list[float]:
    """Growth per second of a counter between neighbouring samples of the same run."""
    return [
        max(0.0, (getattr(b, field) - getattr(a, field)) / (b.at - a.at))
        for a, b in itertools.pairwise(samples)
        if b.run == a.run and b.at > a.at
    ]
