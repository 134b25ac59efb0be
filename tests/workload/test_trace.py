"""Traces: due times in the trace's own unit, and timestamps that cannot be meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.errors import DatasetError
from core.workload import formats, trace
from core.workload.dataset import Dataset
from core.workload.trace import TraceUnit


def traced(folder: Path, *stamps: float | None) -> Dataset:
    file = folder / "001.jsonl"
    rows = [{"prompt": "a", "timestamp": at} for at in stamps]
    file.write_text("\n\n".join(map(json.dumps, rows)))
    return formats.read(file, "001")


def test_a_trace_begins_with_its_first_request() -> None:
    assert trace.replayed([100.0, 100.5, 100.25]) == [0.0, 0.5, 0.25]
    assert trace.replayed([300.0, 0.0, 600.0], "ms") == [0.3, 0.0, 0.6]


@pytest.mark.parametrize(
    ("stamps", "unit"),
    [
        ([0.6, 0.0, 0.3], "s"),
        ([-1, 0], "s"),
        ([1_700_000_000, 1_700_604_800], "s"),
        ([0, 604_800_000], "ms"),
    ],
)
def test_a_trace_of_a_week_is_taken(tmp_path: Path, stamps: list[float], unit: TraceUnit) -> None:
    trace.check(traced(tmp_path, *stamps), 30, unit)


@pytest.mark.parametrize(
    ("stamps", "unit", "said"),
    [
        ([0, None], "s", ":3: timestamp: expected a number"),
        ([0, 604_801], "s", ":3: timestamp: expected a time within 7 days"),
        ([1_700_000_000_000, 0], "s", ":1: timestamp: expected a time within 7 days"),
        ([0, 1_700_000_000_000], "ms", ":3: timestamp: expected a time within 7 days"),
        ([0, 1e300], "s", ":3: timestamp: expected a time within 7 days"),
        ([-1e308, 1e308], "ms", ":3: timestamp: expected a time within 7 days"),
    ],
)
def test_a_time_that_cannot_be_meant_is_refused_with_its_line(
    tmp_path: Path, stamps: list[float | None], unit: TraceUnit, said: str
) -> None:
    data = traced(tmp_path, *stamps)
    with pytest.raises(DatasetError) as caught:
        trace.check(data, 30, unit)
    assert str(caught.value).startswith(f"{data.path}{said}")


def test_what_is_not_sent_needs_no_time(tmp_path: Path) -> None:
    trace.check(traced(tmp_path, 0, 1, None), 2, "s")
