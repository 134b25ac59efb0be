"""Gates, intervals and limits hold what they claim: the simulations of bench/sweep, with fewer
repeats."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.sweep import gate, limit, until

REPEATS = 150


@pytest.mark.parametrize(("change", "pairs"), [(0.0, 1), (0.02, 1), (0.02, 8)])
def test_a_gate_seldom_fails_without_reason(change: float, pairs: int) -> None:
    seen = gate.rates(change, 3, pairs, REPEATS // pairs)
    assert seen["failed"] <= 0.08 * seen.total()


def test_a_gate_sees_ten_percent() -> None:
    assert gate.rates(0.1, 5, 1, REPEATS)["failed"] >= 0.97 * REPEATS


def test_the_command_fails_for_ten_percent_and_not_for_none(tmp_path: Path) -> None:
    assert gate.commands(tmp_path / "none", 0.0, starts=3) == [0] * 20
    assert gate.commands(tmp_path / "ten", 0.1, starts=3).count(1) >= 19


@pytest.mark.parametrize("restart", [0.0, 0.013])
def test_an_interval_holds_the_truth_whenever_its_cell_stops(restart: float) -> None:
    assert until.simulate(restart, REPEATS).held >= 0.92


@pytest.mark.parametrize(("starts", "restart"), [(1, 0.0), (3, 0.0), (3, 0.05)])
def test_the_interval_of_a_limit_holds_it(starts: int, restart: float) -> None:
    found = limit.simulate(4.0, 60, starts, restart, REPEATS)
    assert found.held >= 0.9
    assert 0.9 <= found.ratio <= 1.1
