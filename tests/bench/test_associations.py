"""The simulation of the findings about skew: what it plants is there, and what it does not is not;
its whole table is in `bench/results/analysis`."""

from __future__ import annotations

import numpy as np
import pytest

from bench.analysis import associations
from core.stats import dependence, power


def test_what_is_planted_is_found_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dependence, "PERMUTATIONS", 999)
    monkeypatch.setattr(power, "MOST", 2)
    kinds: tuple[associations.Shape, ...] = ("line", "U", "none")
    found, word = (
        np.array([[associations.seen(kind, 25, seed)[:2] for seed in range(6)] for kind in kinds])
        .sum(axis=1)
        .T
    )
    assert (found >= word).all()
    assert min(word[:2]) >= 4
    assert found[2] <= 2


def test_verdicts_and_what_settles_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dependence, "PERMUTATIONS", 399)
    said = [associations.verdict_on(bends, 0.08, 0.005, 25, 0) for bends in (False, True)]
    assert said == ["larger", "bends"]
    assert associations.verdict_on(False, 0.0, 0.002, 25, 1) == "equivalent"
    assert associations.settled(0.0, 0.002, 25, 0.05, 0) is None  # settled by the pilot
    told = [one for seed in range(6) if (one := associations.settled(0.0, 0.01, 25, 0.0036, seed))]
    assert sum(settled for _, settled in told) >= 0.6 * len(told) > 0
