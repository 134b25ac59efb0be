"""Which steps a placement is made from, and which it is judged on: the two halves of a log, or two
sets of its datasets.

By time, what a placement saves is a mean over WINDOWS stretches of the judged half: it is said of
traffic that goes on as it was. By dataset it is a mean over the judged datasets, of which none
helped to make it: it is said of other datasets of their kind.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from core.analysis.traffic import Steps
from core.stats import bootstrap, estimate
from core.stats.arrays import Floats, Ints
from core.stats.estimate import MIN_DATASETS, Estimate

WINDOWS = 16
MIN_STEPS = 8 * WINDOWS  # of a phase
By = Literal["time", "dataset"]


@dataclass(frozen=True, slots=True)
class Split:
    """Placements are made from `first` and compared on `second`, then made anew from both, `made`.
    `judged` chooses nothing; `windows` [its steps]: which stretch or dataset each is of."""

    by: By
    first: Steps
    second: Steps
    made: Steps
    judged: Steps
    windows: Ints

    def saved(self, less: Floats, whole: Floats) -> Estimate:
        """`less` of `whole` [judged steps], in %: the mean of windows, with its 95 % interval."""
        sums = [np.bincount(self.windows, values) for values in (less, whole)]
        values = 100 * sums[0] / np.maximum(sums[1], 1e-12)
        return mean_of_windows(values, are_neighbours=self.by == "time")


def of(steps: Steps, by: By) -> Split | str:
    """The split; why there is none, where the steps are too few."""
    if len(steps) < MIN_STEPS:
        return f"{MIN_STEPS} steps are needed"
    return _by_time(steps) if by == "time" else _by_dataset(steps)


def mean_of_windows(values: Floats, *, are_neighbours: bool) -> Estimate:
    """The mean with its 95 % interval by Student's t; wider by √((1 + ρ)/(1 - ρ)) where neighbours
    correlate by ρ, as when topics drift."""
    n = len(values)
    alike = min(max(bootstrap.lag_one(values), 0.0), 0.9) if are_neighbours else 0.0
    error = float(values.std(ddof=1)) / math.sqrt(n) * math.sqrt((1 + alike) / (1 - alike))
    half = bootstrap.t_quantile(n - 1) * error
    mean = float(values.mean())
    return estimate.of(mean, (mean - half, mean + half))


def _by_time(steps: Steps) -> Split:
    judged = steps.part(0.5, 1)
    windows = np.arange(len(judged)) * WINDOWS // len(judged)
    halves = (steps.part(0, 0.25), steps.part(0.25, 0.5))
    return Split("time", *halves, steps.part(0, 0.5), judged, windows)


def _by_dataset(steps: Steps) -> Split | str:
    """Every other dataset is judged: those that are numbered by a score are so spread alike."""
    known, place = np.unique(steps.dataset, return_inverse=True)
    if len(known) and known[0] < 0:  # steps of no dataset, or of several
        known, place = known[1:], place - 1
    if len(known) < MIN_DATASETS:
        return f"{MIN_DATASETS} datasets are needed to split by them; the log has {len(known)}"
    quarter = np.where(place < 0, -1, place % 4)
    first, second, made, judged = (
        steps.where(np.isin(quarter, own)) for own in ([0], [2], [0, 2], [1, 3])
    )
    return Split("dataset", first, second, made, judged, place[np.isin(quarter, [1, 3])] // 2)
