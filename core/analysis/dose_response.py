"""Dose-response under forced routing: a metric against the recorded skew, level by level, with
intervals.

- A level's value is the mean over datasets of the means over repeats. A curve counts the datasets
  that ran every one of its levels, so that levels differ in their dose alone.
- Skew is what was recorded, not what was aimed at: the aggregated CV of expert load. Where the heat
  rotates it evens out over a run, so there it is the steps' excess CV. Beside it stands max/mean of
  load over EP ranks.
- From 8 datasets on, intervals are by the bootstrap over datasets: they speak for datasets like
  these. Below, over runs: the residuals of runs about the mean of their dataset and level are
  pooled and drawn, widened to as many degrees of freedom as there are runs beyond the first of each
  dataset and level: they speak for these datasets.
- The slope is the least squares line's through the levels' values: the mean slope over the doses.
  Where their quadratic part is significant a slope would mislead, so the rise over the lowest level
  is given instead. p is Student's, with the interval's degrees of freedom; Holm's correction is
  over all slopes, bends and differences that are reported side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from core.analysis.dose_sample import DoseRun, Response, is_seen, respond
from core.analysis.results import NAMES
from core.stats import estimate
from core.stats.arrays import Floats
from core.stats.estimate import Estimate
from core.stats.written import p_in_words

METRICS = {"mean_tpot_ms": NAMES["mean_tpot_ms"], "decode_step_ms": ("decode step", "ms")} | NAMES
HIGHER_IS_BETTER = {"output_throughput"}
# The unit of slopes, of CV and of max/mean; a skew that varies by less gives none.
PER = 0.1


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """One dose of a curve: aimed at `level`, recorded `cv` and max/mean over ranks, n runs, and
    what the metric was.

    `over_lowest`: the difference to the curve's lowest level.
    """

    level: float
    cv: float
    rank: float | None
    n: int
    value: Estimate
    over_lowest: Estimate | None = None


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """A metric of one backend under one pattern. Slopes are per 0.1 of CV and of max/mean over
    ranks.

    `bend`: the quadratic part over the line. `p`, `p_bend`: two-sided, that the slope against CV,
    and the bend, are 0; `p_holm`, `p_bend_holm` corrected for all that is tested beside them.
    """

    backend: str
    pattern: str
    metric: str
    datasets: int
    levels: list[Level]
    per_cv: Estimate
    per_rank: Estimate
    p: float | None = None
    p_holm: float | None = None
    bend: Estimate
    p_bend: float | None = None
    p_bend_holm: float | None = None

    @property
    def is_seen(self) -> bool:
        return is_seen(self.per_cv, self.p_holm)

    @property
    def bends(self) -> bool:
        """Whether the levels do not lie on a straight line."""
        return is_seen(self.bend, self.p_bend_holm)

    @property
    def n(self) -> int:
        return sum(level.n for level in self.levels)

    def in_words(self) -> str:
        """One sentence with the interval, the doses and n."""
        name, unit = METRICS[self.metric]
        who = f"{self.pattern}: {self.backend} {name}"
        if self.per_cv.value is None:
            return f"{who}: no slope against imposed skew: {self.per_cv.reason}"
        if self.bends:
            return f"{who} follows imposed skew, but not on a straight line: {self._over_lowest()}"
        slope = f"{self.per_cv.shown('+.3g')} {unit} per {PER} of recorded CV"
        first, last = self.levels[0], self.levels[-1]
        n = counted(self.n, self.datasets)
        facts = f"{tested(self.p_holm)}doses {first.cv:.2f} to {last.cv:.2f}, {n}"
        if not self.is_seen:
            return f"{who}: no effect of imposed skew is detected ({slope}; {facts})"
        way = "rises" if self.per_cv.value > 0 else "falls"
        ends = f"from {first.value.value:.4g} to {last.value.value:.4g} {unit}"
        return f"{who} {way} with imposed skew: {slope}, {ends} ({facts})"

    def _over_lowest(self) -> str:
        unit = METRICS[self.metric][1]
        first = self.levels[0]
        rises = ", ".join(
            f"{o.shown('+.3g')} at {v.cv:.2f}" for v in self.levels[1:] if (o := v.over_lowest)
        )
        lowest = f"{first.value.value:.4g} {unit} at the lowest"
        facts = f"{tested(self.p_bend_holm)}{lowest}, {counted(self.n, self.datasets)}"
        return f"over the lowest dose {rises} of recorded CV, {unit} ({facts})"


def tested(p_holm: float | None) -> str:
    """The p value that a sentence's facts begin with."""
    if p_holm is None:
        return ""
    return f"{p_in_words(p_holm)} after Holm; "


def counted(runs: int, datasets: int) -> str:
    return f"n = {runs} runs of {datasets} {'dataset' if datasets == 1 else 'datasets'}"


def spanned(counts: Sequence[int]) -> str:
    """`3`, or `2 to 3`."""
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def curves(runs: Sequence[DoseRun]) -> list[Curve]:
    """The curve of every backend, pattern and metric."""
    keys = dict.fromkeys((r.backend, r.pattern) for r in runs if r.pattern)
    made = [
        curve(runs, backend, pattern, metric) for backend, pattern in keys for metric in METRICS
    ]
    return [one for one in made if one.levels]


def curve(runs: Sequence[DoseRun], backend: str, pattern: str, metric: str) -> Curve:
    response = respond(runs, backend, pattern, metric)
    per_cv = slope(response, response.cv, "recorded CV")
    bending = _bending(response.cv)
    return Curve(
        backend=backend,
        pattern=pattern,
        metric=metric,
        datasets=response.datasets,
        levels=levels_of(response),
        per_cv=per_cv,
        per_rank=slope(response, response.rank, "max/mean over ranks"),
        p=None if per_cv.value is None else response.p(_line(response.cv)),
        bend=estimate.none("fewer than 3 levels")
        if bending is None
        else response.contrast(bending),
        p_bend=None if bending is None else response.p(bending),
    )


def slope(response: Response, skew: Floats, name: str) -> Estimate:
    """The slope of the least squares line through the levels' values, per 0.1 of `skew`
    [levels]."""
    if len(skew) < 2:
        return estimate.none(response.reason or "one level gives no slope")
    if not np.isfinite(skew).all():
        return estimate.none(f"no {name} was recorded")
    if np.ptp(skew) < PER:
        return estimate.none(f"{name} varies by less than {PER} over the levels")
    return response.contrast(_line(skew))


def _line(skew: Floats) -> Floats:
    """The weights of the least squares slope, per 0.1."""
    off = skew - skew.mean()
    return np.asarray(PER * off / (off @ off))


def _bending(skew: Floats) -> Floats | None:
    """The weights of the quadratic part, in the metric's unit per CV²; None where no three levels
    differ."""
    if len(skew) < 3 or np.ptp(skew) < PER:
        return None
    line = np.column_stack([np.ones(len(skew)), skew])
    left = skew**2 - line @ np.linalg.lstsq(line, skew**2, rcond=None)[0]
    return np.asarray(left / (left @ left)) if left @ left > 1e-9 else None


def levels_of(response: Response) -> list[Level]:
    """A response as sentences and figures show it."""
    at = np.eye(len(response.levels))
    return [
        Level(
            level=float(response.levels[i]),
            cv=float(response.cv[i]),
            rank=float(response.rank[i]) if np.isfinite(response.rank[i]) else None,
            n=int(response.n[i]),
            value=value,
            over_lowest=response.contrast(at[i] - at[0]) if i else None,
        )
        for i, value in enumerate(response.values)
    ]
