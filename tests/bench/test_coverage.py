"""Intervals hold the truth about as often as they say: the cases of bench/analysis/coverage.py,
with fewer repeats."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest


def load() -> Any:
    spec = importlib.util.spec_from_file_location("coverage_bench", BENCH)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BENCH = Path(__file__).parents[2] / "bench" / "analysis" / "coverage.py"
CASES = {case.name: case for case in load().CASES}
REPEATS = 80
# known to be too narrow, and documented
NARROW = {("association, t(3) noise", "pearson"), ("association, t(3) noise", "explained")}


@pytest.mark.parametrize("name", CASES)
def test_intervals_hold_the_truth(name: str) -> None:
    rows = list(CASES[name].rows(REPEATS))
    assert rows
    for estimate, _, _, _, held, of in rows:
        if (name, estimate) not in NARROW:
            assert of >= 0.9 * REPEATS, estimate
            assert held / of >= 0.875, estimate


def test_estimates_have_no_bias_to_speak_of() -> None:
    for name in ("independent steps", "association, n = 25", "step model, wild noise"):
        for estimate, known, truth, mean, _, _ in CASES[name].rows(REPEATS):
            if known:
                assert mean == pytest.approx(truth, rel=0.06), estimate
