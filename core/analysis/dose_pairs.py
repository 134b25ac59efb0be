"""Two dose-response curves at the same doses: where one backend loses to another, and what the
ranks' waiting costs.

The difference of two curves is taken level by level, over the datasets that ran all of the levels
in both.
- Crossing: a level counts as won or lost where its interval leaves 0 out, and its p, corrected by
  Holm over the levels of the pair, agrees. One curve crosses the other where lost levels follow won
  ones (or the other way round); the place is where the straight pieces between level values pass 0.
- hot-rank against spread: the same CV over experts, all of it on one EP rank or one hot expert on
  each. Their difference is what comes of the ranks' waiting for each other; what spread costs over
  level 0 is the kernel's.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np

from core.analysis import dose_response, dose_sample
from core.analysis.dose_response import HIGHER_IS_BETTER, METRICS, Level, counted, tested
from core.analysis.dose_sample import DoseRun, Response, is_seen
from core.stats import bootstrap, estimate
from core.stats.arrays import Floats
from core.stats.estimate import Estimate

HOT_RANK, SPREAD = "hot-rank", "spread"
EQUAL_CV = 0.05  # relative: recorded CVs that differ by more are said to

Verdict = Literal["loses above", "wins above", "wins", "loses", "alike", "mixed", "unknown"]


class Crossing(msgspec.Struct, frozen=True, kw_only=True):
    """`differences`: other less reference at each level, `told_apart`: how many of them are seen.
    `at`: the recorded CV where the two cross, if they do."""

    pattern: str
    metric: str
    reference: str
    other: str
    datasets: int
    differences: list[Level]
    told_apart: int
    verdict: Verdict
    at: Estimate

    def in_words(self) -> str:
        """Where `other` loses to `reference`, or that it is not seen to."""
        name = METRICS[self.metric][0]
        pair = f"{self.other} {name}", f"{self.reference}'s"
        told = (
            self._told(*pair)
            if self.verdict != "unknown"
            else f"{pair[0]} and {pair[1]} are not compared"
        )
        reason = f": {self.at.reason}" if self.verdict == "unknown" else ""
        return f"{self.pattern}: {told}{reason}{self._facts()}"

    def _told(self, other: str, reference: str) -> str:
        levels, at = len(self.differences), self.at.shown(".2f")
        where = f"at {self.told_apart} of {levels} levels"
        match self.verdict:
            case "loses above":
                return f"{other} beats {reference} up to a recorded CV of {at} and loses above"
            case "wins above":
                return f"{other} loses to {reference} up to a recorded CV of {at} and wins above"
            case "wins":
                return f"{other} beats {reference} {where}, and loses detectably at none"
            case "loses":
                return f"{other} loses to {reference} {where}, and wins detectably at none"
            case "alike":
                pair = f"{other} and {reference}"
                return f"no difference between {pair} is detected at any of {levels} levels"
            case "mixed":
                return f"{other} and {reference} cross more than once: no one skew separates them"
            case _:
                return ""

    def _facts(self) -> str:
        if not self.differences:
            return ""
        first, last = self.differences[0], self.differences[-1]
        n = counted(sum(d.n for d in self.differences), self.datasets)
        return f" (doses {first.cv:.2f} to {last.cv:.2f}, {n})"


class RankWait(msgspec.Struct, frozen=True, kw_only=True):
    """hot-rank less spread of one backend's metric, by level and as the `mean` over levels above 0.

    `p`: two-sided, that the mean is 0; `p_holm` corrected. `spread`: what spread costs over its
    level 0, mean over the same levels. `cvs`, `ranks`: recorded, of the two.
    """

    backend: str
    metric: str
    datasets: int
    differences: list[Level]
    mean: Estimate
    spread: Estimate
    p: float | None = None
    p_holm: float | None = None
    cvs: tuple[float, float] | None = None
    ranks: tuple[float, float] | None = None

    def in_words(self) -> str:
        """What one hot rank costs beyond equally hot experts that are spread over the ranks."""
        name, unit = METRICS[self.metric]
        who = f"{HOT_RANK} against {SPREAD}: {self.backend} {name}"
        if self.mean.value is None or self.cvs is None:
            return f"{who}: not compared: {self.mean.reason}"
        amount = f"{self.mean.shown('+.3g')} {unit}"
        n = counted(sum(d.n for d in self.differences), self.datasets)
        facts = f"({tested(self.p_holm)}{self._recorded()}; {n})"
        if not is_seen(self.mean, self.p_holm):
            no_difference = "no difference is detected at the same doses"
            return f"{who}: {no_difference}: {amount} {facts}{self._kernel(unit)}"
        way = "higher" if self.mean.value > 0 else "lower"
        cause = ": what the ranks' waiting for each other adds" if self._is_waiting else ""
        return f"{who} is {way} at the same doses: {amount}{cause} {facts}{self._kernel(unit)}"

    @property
    def _is_waiting(self) -> bool:
        """Whether the ranks can be the cause of the difference."""
        return self.ranks is not None and self.ranks[0] > self.ranks[1]

    def _recorded(self) -> str:
        assert self.cvs is not None  # in_words has looked
        low, high = sorted(self.cvs)
        heated = sum(d.level > 0 for d in self.differences)
        levels = "1 level" if heated == 1 else f"{heated} levels"
        facts = f"mean over {levels} above 0"
        facts += f", recorded CV {self.cvs[0]:.2f} against {self.cvs[1]:.2f}"
        if high - low > EQUAL_CV * high:
            facts += ", which is not the same"
        if self.ranks is None:
            return f"{facts}; no EP ranks to wait for: a control"
        return f"{facts}, max/mean over ranks {self.ranks[0]:.2f} against {self.ranks[1]:.2f}"

    def _kernel(self, unit: str) -> str:
        if self.spread.value is None:
            return ""
        seen = "" if self.spread.excludes_zero else ", no effect detected"
        return f"; {SPREAD} itself over level 0: {self.spread.shown('+.3g')} {unit}{seen}"


def crossings(runs: Sequence[DoseRun]) -> list[Crossing]:
    """Every later backend against every earlier one, under each pattern that both ran."""
    patterns = {
        b: list(dict.fromkeys(r.pattern for r in runs if r.backend == b and r.pattern))
        for b in _backends(runs)
    }
    made = [
        crossing(runs, pattern, metric, reference, other)
        for reference, other in itertools.combinations(patterns, 2)
        for pattern in patterns[reference]
        if pattern in patterns[other]
        for metric in METRICS
    ]
    return [one for one in made if one.differences]


def crossing(
    runs: Sequence[DoseRun], pattern: str, metric: str, reference: str, other: str
) -> Crossing:
    before, after = dose_sample.at_same_doses(runs, metric, (reference, pattern), (other, pattern))
    difference = after.less(before)
    verdict, at = _verdict(difference, -1 if metric in HIGHER_IS_BETTER else 1)
    return Crossing(
        pattern=pattern,
        metric=metric,
        reference=reference,
        other=other,
        datasets=difference.datasets,
        differences=dose_response.levels_of(difference),
        told_apart=sum(difference.seen),
        verdict=verdict,
        at=at,
    )


def _verdict(difference: Response, worse: int) -> tuple[Verdict, Estimate]:
    """`worse`: the sign of a difference that is a loss."""
    if difference.reason:
        return "unknown", estimate.none(difference.reason)
    seen = difference.seen
    told = [
        (place, worse * int(np.sign(difference.mean[place]))) for place in np.flatnonzero(seen)
    ]  # 1: lost, -1: won
    turns = [(a, b) for a, b in itertools.pairwise(told) if a[1] != b[1]]
    none = estimate.none("no crossing is detected within the doses")
    if not turns:
        return ("loses" if told[0][1] > 0 else "wins") if told else "alike", none
    if len(turns) > 1:
        return "mixed", none
    (first, sign), (last, _) = turns[0]
    return "wins above" if sign > 0 else "loses above", _place(difference, slice(first, last + 1))


def _place(difference: Response, between: slice) -> Estimate:
    """The CV at which the difference passes 0 between two levels that are told apart."""
    cv = difference.cv[between]
    found = _passes_zero(cv, difference.mean[None, between])[0]
    drawn = _passes_zero(cv, difference.drawn[:, between])
    return estimate.of(float(found), bootstrap.interval(float(found), drawn, difference.units))


def _passes_zero(cv: Floats, differences: Floats) -> Floats:
    """Of each row of `differences` [rows, levels] the mean place of its changes of sign; nan where
    there is none."""
    left, right = differences[:, :-1], differences[:, 1:]
    changes = np.sign(left) != np.sign(right)
    with np.errstate(invalid="ignore", divide="ignore"):
        place = cv[:-1] + np.diff(cv) * left / (left - right)
        return np.asarray(np.where(changes, place, 0).sum(axis=1) / changes.sum(axis=1))


def rank_waits(runs: Sequence[DoseRun]) -> list[RankWait]:
    """Of every backend that ran both patterns."""
    ran = {(r.backend, r.pattern) for r in runs}
    both = [b for b in _backends(runs) if (b, HOT_RANK) in ran and (b, SPREAD) in ran]
    made = [rank_wait(runs, backend, metric) for backend in both for metric in METRICS]
    return [one for one in made if one.differences]


def rank_wait(runs: Sequence[DoseRun], backend: str, metric: str) -> RankWait:
    hot, spread = dose_sample.at_same_doses(runs, metric, (backend, HOT_RANK), (backend, SPREAD))
    difference = hot.less(spread)
    above, at_zero = difference.levels > 0, difference.levels == 0
    heated = above / max(above.sum(), 1)
    if not above.any():
        none = estimate.none("no level above 0 was run under both")
        return RankWait(
            backend=backend, metric=metric, datasets=0, differences=[], mean=none, spread=none
        )
    no_zero = estimate.none("no level 0 was run under both")
    ranks = float(hot.rank @ heated), float(spread.rank @ heated)
    return RankWait(
        backend=backend,
        metric=metric,
        datasets=difference.datasets,
        differences=dose_response.levels_of(difference),
        mean=difference.contrast(heated),
        p=difference.p(heated),
        spread=spread.contrast(heated - at_zero) if at_zero.any() else no_zero,
        cvs=(float(hot.cv @ heated), float(spread.cv @ heated)),
        ranks=ranks if np.isfinite(ranks).all() else None,
    )


def _backends(runs: Sequence[DoseRun]) -> list[str]:
    return list(dict.fromkeys(r.backend for r in runs))
