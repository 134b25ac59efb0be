"""Verdicts are wrong no more often than they claim: cells of bench/analysis/equivalence.py with
fewer repeats."""

from __future__ import annotations

import pytest

from bench.analysis import equivalence


@pytest.mark.parametrize("effect", [0.0, 2.0, -2.0])
@pytest.mark.parametrize("design", [(3, False), (3, True)])
def test_a_verdict_is_false_in_one_of_twenty_at_most(
    effect: float, design: equivalence.Design
) -> None:
    """5 %, and three standard errors of 200 experiments."""
    found = equivalence.shares(effect, design, 0.013, 200)
    assert equivalence.false_verdicts(effect, found) <= 0.05 + 3 * 0.0154


def test_verdicts_are_reached() -> None:
    assert equivalence.shares(0.0, (10, False), 0.005, 50)["equivalent"] > 0.9
    assert equivalence.shares(5.0, (10, False), 0.005, 50)["larger"] > 0.9
