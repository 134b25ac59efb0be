"""A GPU's clock drifts; its passes are placed on the host's clock all the same, at once and after
hours. Events are made up: what they measure is a clock of a known rate."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.gate_logs import step, writer

from core.recorder.gatescope_recorder.clock import Clock
from core.routing import folder as gate_folder

MS, S = 1_000_000, 1_000_000_000
TEN_MINUTES = 600 * S
COPY_NS = 60_000  # the count and its copy, after the pass
LOOK_NS = 20_130_000  # the writer waits 20 ms, and works a little


class Event:
    def __init__(self, at_ns: float) -> None:
        self.at_ns = at_ns  # by the GPU's clock

    def elapsed_time(self, later: Event) -> float:
        return float(np.float32((later.at_ns - self.at_ns) / 1e6))


@dataclass(frozen=True)
class Pass:
    """By the host's clock."""

    launched: int
    start: int
    end: int


def slot(one: Pass, ppm: float) -> Any:
    rate = 1 + ppm * 1e-6
    events = (Event(one.start * rate), Event(one.end * rate), None)
    return SimpleNamespace(launched_ns=one.launched, returned_ns=one.launched + 5, events=events)


def decoding(seed: int, ahead_ns: int, until: int = TEN_MINUTES) -> list[Pass]:
    """Steps of 14.3 ms one after the other, each launched up to `ahead_ns` before it can start."""
    draw = random.Random(seed)
    passes, free = [], S
    while free < until:
        took = 14_300_000 + draw.randrange(-50_000, 50_000)
        passes.append(Pass(free - 10_000 - draw.randrange(ahead_ns + 1), free, free + took))
        free += took + 200_000
    return passes


def recorded(
    passes: list[Pass], ppm: float, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[int, int]]:
    """Start and duration of each, read by a writer that looks every 20 ms."""
    now = 0
    monkeypatch.setattr("time.perf_counter_ns", lambda: now)
    timed = Clock()
    for one in passes:
        looks = -(-(one.end + COPY_NS) // LOOK_NS)  # the first look after it is done
        now = looks * LOOK_NS
        start, duration, _ = timed.read(slot(one, ppm))
        yield start, duration


@pytest.mark.parametrize("ahead_ns", [0, 14 * MS])
@pytest.mark.parametrize("ppm", [0.0, 2.0, -2.0, 10.0, -10.0])
def test_ten_minutes_of_drift_leave_starts_where_the_host_saw_them(
    ppm: float, ahead_ns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = decoding(1, ahead_ns)
    passes = [Pass(passes[0].start - 10_000, passes[0].start, passes[0].end), *passes[1:]]
    starts = np.array([start for start, _ in recorded(passes, ppm, monkeypatch)])
    late = starts - np.array([one.start for one in passes])
    assert (np.diff(starts) > 0).all()
    assert late.min() > -200_000
    assert late.max() < 400_000
    at = (starts - starts[0]) / S
    settled = at > 20
    drift_ns_per_s = np.polyfit(at[settled], late[settled], 1)[0]
    assert abs(drift_ns_per_s) < 100  # left to itself it would be 2,000, or 10,000


def test_a_wrong_first_anchor_is_corrected_slowly_and_never_backwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first pass was launched 3 ms before the GPU came to it."""
    first, *rest = decoding(2, 0, 60 * S)
    passes = [Pass(first.start - 3 * MS, first.start, first.end), *rest]
    starts = np.array([start for start, _ in recorded(passes, 0.0, monkeypatch)])
    late = starts - np.array([one.start for one in passes])
    assert late[0] == -3 * MS
    assert abs(late[-1]) < 300_000
    passed = np.diff([one.start for one in passes])
    assert (abs(np.diff(late)) <= 1e-4 * passed + 2).all()


def test_two_ranks_that_drift_apart_merge_without_a_trend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 µs a second apart for ten minutes; both end each step together, and one starts 0.1 ms
    later."""
    passes = decoding(3, 0)
    later = [Pass(one.launched + 100_000, one.start + 100_000, one.end) for one in passes]
    for dp, (own, ppm) in enumerate(((passes, 1.0), (later, -1.0))):
        log = writer(tmp_path, dp, dp_size=2)
        for index, (start, took) in enumerate(recorded(own, ppm, monkeypatch)):
            log.append(step(index, [1, 0], start=start, duration=took))
        log.close()
    merged = gate_folder.read(tmp_path)
    truth = np.array([(one.start, one.end - one.start) for one in passes])
    longer = merged.columns["duration_ns"] - truth[:, 1]
    assert abs(longer).max() < 100  # a millionth of 14 ms, and a float's rounding
    late = merged.columns["start_ns"] - truth[:, 0]
    assert abs(late).max() < 300_000
    at = (truth[:, 0] - truth[0, 0]) / S
    assert abs(np.polyfit(at[at > 20], late[at > 20], 1)[0]) < 100


def test_after_a_rest_a_pass_starts_where_it_was_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = [Pass(at, at + 10_000, at + 10_000 + 8 * MS) for at in (S, 40 * S)]
    assert list(recorded(passes, 500.0, monkeypatch)) == [(S, 8_004_000), (40 * S, 8_004_000)]


def test_few_readings_only_keep_a_start_between_its_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pass every second: launches are tight, looks are up to 20 ms late and say little."""
    passes = [Pass(n * S, n * S + 10_000, n * S + 5 * MS) for n in range(1, 600)]
    for ppm in (10.0, -10.0):
        starts = [start for start, _ in recorded(passes, ppm, monkeypatch)]
        late = np.array(starts) - np.array([one.start for one in passes])
        assert late.min() > -130_000  # 10 s at 10 µs a second, and the launch
        assert late.max() < 20 * MS


def test_without_a_gpu_the_host_s_own_times_stand() -> None:
    timed = Clock()
    for launched in (5, 900):
        one: Any = SimpleNamespace(launched_ns=launched, returned_ns=launched + 7, events=None)
        assert timed.read(one) == (launched, 7, one)
