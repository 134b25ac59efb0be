"""Traces: datasets whose prompts say when they were sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from core.errors import DatasetError
from core.workload.dataset import Dataset

TraceUnit = Literal["s", "ms"]
UNITS_PER_S: dict[TraceUnit, int] = {"s": 1, "ms": 1000}
LONGEST_S = 7 * 86400.0


def replayed(timestamps: Sequence[float], unit: TraceUnit = "s") -> list[float]:
    """Due times of a trace: seconds after its first request."""
    first = min(timestamps, default=0.0)
    return [(at - first) / UNITS_PER_S[unit] for at in timestamps]


def check(data: Dataset, count: int, unit: TraceUnit) -> None:
    """DatasetError, with the line, if one of the first `count` prompts has no timestamp, or is due
    more than LONGEST_S after the first one."""
    prompts = data.prompts[:count]
    stamps = [p.timestamp for p in prompts if p.timestamp is not None]
    due = dict(zip(stamps, replayed(stamps, unit), strict=True))
    for prompt, where in zip(prompts, data.places, strict=False):
        if prompt.timestamp is None:
            raise DatasetError(
                f"{where}: timestamp: expected a number, since the arrival is a trace's, found"
                " none; give every prompt one, or choose another arrival"
            )
        if due[prompt.timestamp] > LONGEST_S:
            raise DatasetError(
                f"{where}: timestamp: expected a time within 7 days of the trace's first, found"
                f" {prompt.timestamp:g} {unit}, which is {due[prompt.timestamp] / 86400:.4g} days"
                " after it; the unit may be another one (s or ms)"
            )
