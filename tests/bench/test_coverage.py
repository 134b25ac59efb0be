"""Intervals contain the truth about as often as they claim: the cases of bench/analysis/coverage.py
with fewer repeats."""

from __future__ import annotations

import pytest

from bench.analysis import coverage

CASES = {case.name: case for case in coverage.CASES}
REPEATS = 80
# Known to be too narrow, as the documentation says.
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
    for name in ("independent steps", "association, n = 25", "cost model, wild noise"):
        for estimate, known, truth, mean, _, _ in CASES[name].rows(REPEATS):
            if known:
                assert mean == pytest.approx(truth, rel=0.06), estimate
