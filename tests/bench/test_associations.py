"""The tests of an association: the cases of bench/analysis/associations.py with fewer repeats."""

from __future__ import annotations

from bench.analysis import associations


def test_unrelated_metrics_are_rarely_called_related() -> None:
    either, _ = associations.rates("none", 25, 30)
    assert either * 30 <= 5  # of 30: a true 5 % shows more once in 300 times


def test_a_line_is_found_and_a_u_by_the_distance_correlation_alone() -> None:
    assert associations.rates("line", 50, 10)[0] >= 0.9
    either, spearman = associations.rates("U", 50, 10)
    assert either > spearman
