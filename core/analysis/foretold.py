"""What was predicted of a backend's router against what was measured, phase by phase."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from msgspec import Struct

from core.analysis.results import Results
from core.experiment import plan
from core.rundir.result import Result
from core.stats import association
from core.stats.arrays import Floats
from core.stats.estimate import Estimate

PHASES = ("prefill", "decode")


class Foretold(Struct, frozen=True, kw_only=True):
    """Signed excess CV² of `datasets`, each at the mean of its runs [n]; `ends` [n, 2]: of what a
    run of them was expected to show, nan where it was taken as known."""

    backend: str
    phase: str
    mode: str
    datasets: tuple[str, ...]
    predicted: Floats
    measured: Floats
    ends: Floats

    @property
    def error(self) -> float:
        """Mean distance of predicted from measured."""
        return float(abs(self.predicted - self.measured).mean())

    @property
    def bias(self) -> float:
        return float((self.predicted - self.measured).mean())

    @property
    def covered(self) -> tuple[int, int]:
        """How many measured values their interval holds, of how many."""
        known = np.isfinite(self.ends[:, 0])
        low, high = self.ends[known].T
        inside = (low <= self.measured[known]) & (self.measured[known] <= high)
        return int(inside.sum()), int(known.sum())

    def order(self) -> tuple[Estimate, Estimate]:
        """Spearman's correlation, and the slope of measured on predicted."""
        found = association.associate(self.predicted, self.measured)
        return found.spearman, found.slope


def of(group: Results) -> list[Foretold]:
    """Each phase of which something was predicted and measured."""
    return [found for phase in PHASES if (found := _of_phase(group, phase))]


def _of_phase(group: Results, phase: str) -> Foretold | None:
    pairs = defaultdict(list)
    modes = set()
    for label, one in group.by_label.items():
        if (pair := _pair(one, phase)) and one.predicted:
            pairs[plan.dataset_of(label)].append(pair)
            modes.add(one.predicted.mode)
    if not pairs:
        return None
    means = np.array([np.mean(own, axis=0) for own in pairs.values()])
    return Foretold(
        backend=group.name,
        phase=phase,
        mode=" and ".join(sorted(modes)),
        datasets=tuple(pairs),
        predicted=means[:, 0],
        measured=means[:, 1],
        ends=means[:, 2:],
    )


def _pair(one: Result, phase: str) -> tuple[float, float, float, float] | None:
    """Predicted, measured, and the ends of what was expected."""
    expected = one.predicted and one.predicted.phase(phase)
    measured = one.measured_imbalance and one.measured_imbalance.phase(phase)
    if not expected or not measured:
        return None
    if expected.excess_squared is None or measured.excess_squared is None:
        return None
    low, high = expected.run_interval or (np.nan, np.nan)
    return expected.excess_squared, measured.excess_squared, low, high
