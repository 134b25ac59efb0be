"""Percentiles of the run in progress."""

from __future__ import annotations

from collections.abc import Sequence

from core.experiment import pace
from core.experiment.events import Latency
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
    """A finished run's latencies. For the run in progress: TTFT of every first token and ITL of
    every gap so far, as last sampled; the others of the requests that have ended."""
    if run.figures:
        return run.figures.latencies
    live = snapshot.live
    if live is None or live.run != run.run.id:
        return {}
    found = {name: latency(getattr(live, f"{name}_ms")) for name in LATENCIES}
    if last := pace.newest(snapshot, run.run.id):
        ttfts = [x for x in (last.ttft, found["ttft"]) if x]
        found["ttft"] = max(ttfts, key=lambda x: x.n, default=None)
        found["itl"] = last.itl or found["itl"]
    return {name: value for name, value in found.items() if value}
