"""Two backends on the same data sets: paired ratio and difference, with intervals over data sets."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from core import bootstrap, estimate
from core.bootstrap import Floats
from core.estimate import MIN_DATASETS, Estimate

RESAMPLES = 2_000


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """`ratio`: geometric mean over data sets of other/reference; `difference`: mean of other - reference."""

    metric: str
    reference: str
    other: str
    n: int
    ratio: Estimate
    difference: Estimate

    def in_words(self, name: str) -> str:
        """`all2all TPOT is 18 % higher than baseline's [16, 21]`; where the interval holds 1, no difference is seen."""
        if self.ratio.value is None or self.ratio.interval is None:
            return f"{self.other} {name} and {self.reference}'s are not compared: {self.ratio.reason}"
        percent, low, high = (100 * (r - 1) for r in (self.ratio.value, *self.ratio.interval))
        ends, of = f"[{low:.1f}, {high:.1f}] %", f"n = {self.n} data sets"
        if low <= 0 <= high:
            seen = f"no difference is seen between {self.other} {name} and {self.reference}'s"
            return f"{seen}: {percent:+.1f} % {ends}, {of}"
        if percent < 0:
            percent, ends = -percent, f"[{-high:.1f}, {-low:.1f}] %"
        way = "higher" if low > 0 else "lower"
        return f"{self.other} {name} is {percent:.1f} % {way} than {self.reference}'s {ends}, {of}"


def compare(
    metric: str, reference: str, other: str, values: tuple[Mapping[str, float], Mapping[str, float]]
) -> Comparison:
    """`values`: of the reference and of the other, by data set (repeats already averaged)."""
    shared = sorted(values[0].keys() & values[1].keys())
    before, after = (np.array([side[name] for name in shared]) for side in values)
    if reason := _unsupported(before, after):
        null = estimate.none(reason)
        return Comparison(metric=metric, reference=reference, other=other, n=len(shared), ratio=null, difference=null)
    draws = bootstrap.weights(len(shared), RESAMPLES) / len(shared)
    logs, gaps = np.log(after / before), after - before
    ratio = bootstrap.interval(float(logs.mean()), draws @ logs, len(shared))
    gap = bootstrap.interval(float(gaps.mean()), draws @ gaps, len(shared))
    return Comparison(
        metric=metric,
        reference=reference,
        other=other,
        n=len(shared),
        ratio=estimate.of(float(np.exp(logs.mean())), ratio and (float(np.exp(ratio[0])), float(np.exp(ratio[1])))),
        difference=estimate.of(float(gaps.mean()), gap),
    )


def _unsupported(before: Floats, after: Floats) -> str | None:
    if len(before) < MIN_DATASETS:
        return f"n = {len(before)} data sets run by both: too few to say; {MIN_DATASETS} are needed"
    if (before <= 0).any() or (after <= 0).any():
        return "a value is not above zero, so there is no ratio"
    return None
