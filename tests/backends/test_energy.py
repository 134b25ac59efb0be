"""Energy and clocks of a run and its phases, from readings of known counters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import fake_nvml

from core.backends import energy
from core.backends.energy import NO_COUNTER, NO_GPU, Gauge, Reading, Spans

S = 10**9


def spans(*steps: tuple[float, float], tokens: int) -> Spans:
    starts, ends = np.array(steps).T
    return Spans((starts * S).astype(np.int64), (ends * S).astype(np.int64), tokens)


def test_phases_share_the_energy_of_a_run_by_the_time_of_their_steps() -> None:
    """Three seconds at 100, 300 and 200 W; the clock falls from 1800 to 1200 MHz in the second."""
    readings = [
        Reading(0, 5000.0, 1800.0),
        Reading(1 * S, 5100.0, 1800.0),
        Reading(2 * S, 5400.0, 1200.0),
        Reading(3 * S, 5600.0, 1200.0),
    ]
    phases = {
        "prefill": spans((0.0, 0.5), (1.0, 1.5), tokens=100),
        "decode": spans((1.5, 2.0), (2.0, 2.5), tokens=25),
    }
    found = energy.used(readings, S // 2, 5 * S // 2, 45, phases)
    assert found.energy_j == pytest.approx(50 + 300 + 100)
    assert found.j_per_output_token == pytest.approx(10)
    assert found.energy_reason is None
    assert found.sm_clock_mhz == pytest.approx((0.5 * 1800 + 1500 + 0.5 * 1200) / 2)
    prefill, decode = found.energy_phases["prefill"], found.energy_phases["decode"]
    assert (prefill.seconds, prefill.tokens) == (1.0, 100)
    assert prefill.energy_j == pytest.approx(50 + 150)
    assert prefill.j_per_token == pytest.approx(2)
    assert decode.energy_j == pytest.approx(150 + 100)
    assert decode.j_per_token == pytest.approx(10)
    assert decode.sm_clock_mhz == pytest.approx(1200, abs=160)


def test_a_phase_without_steps_and_a_run_without_tokens_have_no_figure() -> None:
    readings = [Reading(0, 0.0, 1000.0), Reading(S, 10.0, 1000.0)]
    nothing = Spans(np.zeros(0, np.int64), np.zeros(0, np.int64), 0)
    found = energy.used(readings, 0, S, 0, {"prefill": nothing})
    assert (found.energy_j, found.j_per_output_token) == (10.0, None)
    assert found.energy_phases == {}


def test_a_gpu_without_a_counter_still_shows_its_clock() -> None:
    readings = [Reading(0, None, 1000.0), Reading(S, None, 1400.0)]
    found = energy.used(readings, 0, S, 5, {})
    assert (found.energy_j, found.energy_reason) == (None, NO_COUNTER)
    assert found.sm_clock_mhz == pytest.approx(1200)


def gauged(
    monkeypatch: pytest.MonkeyPatch, folder: Path, count: int, *gpus: dict[str, Any]
) -> Gauge:
    fake_nvml.install(folder, monkeypatch, *gpus)
    return Gauge({}, count)


def test_a_gauge_reads_as_many_gpus_as_the_server_has_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus: list[dict[str, Any]] = [
        {**fake_nvml.H200, "millijoules": 1_000_000, "limit_w": 700},
        {**fake_nvml.H200, "millijoules": 2_000_000, "limit_w": 700, "clock": 1510},
        {**fake_nvml.H200, "millijoules": 0, "limit_w": 300},
    ]
    gauge = gauged(monkeypatch, tmp_path, 2, *gpus)
    gauge.read()
    for gpu, more in zip(gpus, (150_000, 200_000, 999), strict=True):
        gpu["millijoules"] += more
    fake_nvml.show(*gpus)
    gauge.read()
    first, last = gauge.readings[0].at_ns, gauge.readings[-1].at_ns
    found = gauge.used(first, last, 100, {})
    assert found.energy_j == pytest.approx(350)
    assert found.j_per_output_token == pytest.approx(3.5)
    assert found.sm_clock_mhz == pytest.approx(1460)
    assert found.power_limit_w == 700


def test_without_a_gpu_the_reason_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for gauge in (
        gauged(monkeypatch, tmp_path, 1),
        gauged(monkeypatch, tmp_path, 0, fake_nvml.H200),
    ):
        gauge.read()
        found = gauge.used(0, S, 10, {})
        assert (found.energy_j, found.energy_reason, found.sm_clock_mhz) == (None, NO_GPU, None)
