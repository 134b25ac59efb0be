"""What imbalance costs an engine step: step time against tokens, requests and the busiest rank's extra load.

time = a + b · tokens + c · prompt tokens + d · requests + m · extra, where extra is the busiest rank's load less the
mean over ranks (experts, without expert parallelism), in tokens, mean over layers; 0 for a perfectly balanced router.
Fitted by Huber's weighted least squares, since a few steps are slow for reasons of their own; intervals by the
bootstrap over runs, or over blocks of neighbouring steps where runs are few. It is an association within the log:
a balanced router saves m · extra at most, if extra is what causes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from core import bootstrap, dose, estimate, steps
from core.bootstrap import Floats
from core.estimate import Estimate
from core.gatelog import GateLog, ServerLog
from core.meter import WARMUP

MAX_STEPS = 1 << 16  # more are thinned evenly
MAX_LOADS = 1 << 22  # counts kept for placements
MIN_STEPS = 50
MIN_RUNS = 8
HUBER = 1.345

COLUMNS = ("duration_us", "tokens", "prefill_tokens", "requests", "extra", "mean_load", "run")


@dataclass(frozen=True, slots=True)
class StepSample:
    """`rows` [steps, COLUMNS]; `loads` [decode steps, layers, experts] in order of time; `ranks`: EP ranks, or 1."""

    rows: Floats
    loads: Floats
    ranks: int

    @property
    def unit(self) -> str:
        return "rank" if self.ranks > 1 else "expert"


class StepModel(msgspec.Struct, frozen=True, kw_only=True):
    """`per_token`: µs a step for a token of extra load; `marginal`: µs for 0.1 of max/mean at the mean load.

    `saved`: % of the step time that a perfectly balanced router would save at most.
    """

    phase: str
    n: int
    unit: str
    per_token: Estimate
    marginal: Estimate
    saved: Estimate

    @property
    def sees_a_cost(self) -> bool:
        """Whether the interval of the cost lies above zero."""
        return self.per_token.interval is not None and self.per_token.interval[0] > 0

    def in_words(self, backend: str) -> str:
        """One sentence with intervals and n."""
        if self.saved.value is None:
            return f"{backend}, {self.phase} steps: no cost of imbalance is estimated: {self.saved.reason}"
        facts = f"{self.marginal.shown('+.3g')} µs a step for 0.1 of max/mean over {self.unit}s, n = {self.n} steps"
        if not self.sees_a_cost:
            most = max(0.0, self.saved.interval[1]) if self.saved.interval else 0.0
            return (
                f"{backend}, {self.phase} steps: no cost of imbalance is seen ({facts}; at most {most:.1f} % of a step)"
            )
        return (
            f"{backend}, {self.phase} steps: imbalance costs {facts};"
            f" a perfectly balanced router would save {self.saved.shown('.1f')} % of the step time at most"
        )


def read(folders: Sequence[Path]) -> StepSample:
    """The steps of a backend's gate logs, in bounded memory. GateLogError as `ServerLog.read`."""
    rows: list[Floats] = []
    loads: list[Floats] = []
    runs: dict[str, int] = {}
    ranks, stride, loads_stride, seen = 1, 1, 1, 0
    for folder in folders:
        for part in ServerLog(folder).blocks():
            ranks = max(part.placement, default=0) + 1
            place = np.arange(seen, seen + len(part.tokens))
            seen += len(place)
            made = _rows(part, runs)
            own = made[:, -1] >= 0
            rows.append(made[own & (place % stride == 0)])
            decode = own & (part.columns["prefill_tokens"] == 0)
            loads.append(part.loads[decode & (place % loads_stride == 0)].astype(np.float64))
            while sum(map(len, rows)) > MAX_STEPS:
                rows, stride = [np.concatenate(rows)[::2]], stride * 2
            while sum(a.size for a in loads) > MAX_LOADS:
                loads, loads_stride = [np.concatenate(loads)[::2]], loads_stride * 2
    if not rows:
        return StepSample(np.zeros((0, len(COLUMNS))), np.zeros((0, 1, 1)), ranks)
    return StepSample(np.concatenate(rows), np.concatenate(loads), ranks)


def _rows(log: GateLog, runs: dict[str, int]) -> Floats:
    """[steps, COLUMNS]; run -1 where a step is no run's own, or its routing was forced."""
    figures, _ = steps.measure(log.loads, log.tokens, log.top_k, log.placement, np.zeros((len(log.tokens), 0)))
    units = max(log.placement) + 1 if log.placement else log.loads.shape[2]
    layers = np.maximum(figures.layers, 1)
    run = np.full(len(log.tokens), -1.0)
    for label, own in log.segments.items():
        if label not in ("", WARMUP) and not dose.of_label(label):
            run[(own == log.tokens) & (own > 0)] = runs.setdefault(label, len(runs))
    extra = (figures.rank_extra if log.placement else figures.expert_extra) / layers
    c = log.columns
    return np.column_stack(
        [
            *(c["duration_ns"] / 1e3, log.tokens, c["prefill_tokens"], c["requests"]),
            *(extra, log.tokens * log.top_k / units, run),
        ]
    )


def fit(sample: StepSample, phase: str) -> StepModel:
    """`phase`: "decode" (steps without prompt tokens) or "prefill" (with)."""
    rows = sample.rows[(sample.rows[:, 2] > 0) == (phase == "prefill")]
    y, extra, mean_load = rows[:, 0], rows[:, 4], rows[:, 5]
    if len(rows) < MIN_STEPS or not np.ptp(extra):
        reason = f"n = {len(rows)} steps, {MIN_STEPS} are needed" if len(rows) < MIN_STEPS else "the load never varies"
        null = estimate.none(reason)
        return StepModel(phase=phase, n=len(rows), unit=sample.unit, per_token=null, marginal=null, saved=null)
    design = _design(rows)
    weight = _huber(design, y)
    groups, count = _groups(rows[:, -1])
    cost = _coefficient(design, y, weight, groups, count)
    return StepModel(
        phase=phase,
        n=len(rows),
        unit=sample.unit,
        per_token=cost,
        marginal=cost.scaled(0.1 * float(mean_load.mean())),
        saved=cost.scaled(100 * float(extra.mean()) / float(np.median(y))),
    )


def _design(rows: Floats) -> Floats:
    """Intercept, the confounders that vary and are not each other, and last the extra load; unit spread each."""
    columns: list[Floats] = []
    for column in rows[:, 1:4].T:
        if np.ptp(column) and not any(np.array_equal(column, known) for known in columns):
            columns.append(column)
    columns.append(rows[:, 4])
    return np.column_stack([np.ones(len(rows)), *columns])


def _huber(design: Floats, y: Floats) -> Floats:
    """Huber's weights after ten rounds, the scale from the median absolute residual."""
    weight = np.ones(len(y))
    for _ in range(10):
        root = np.sqrt(weight)
        left = y - design @ np.linalg.lstsq(design * root[:, None], y * root, rcond=None)[0]
        size = abs(left)
        scale = max(float(np.median(size)) / 0.6745, 1e-9)
        weight = np.minimum(1.0, HUBER * scale / np.maximum(size, 1e-12))
    return weight


def _groups(run: Floats) -> tuple[npt.NDArray[np.int64], int]:
    """What the bootstrap draws: runs, or blocks of neighbouring steps."""
    names, group = np.unique(run, return_inverse=True)
    if len(names) < MIN_RUNS:
        group = np.arange(len(run)) // int(np.ceil(bootstrap.block_length(len(run))))
    return group, int(group.max()) + 1


def _coefficient(design: Floats, y: Floats, weight: Floats, group: npt.NDArray[np.int64], count: int) -> Estimate:
    """The last column's coefficient."""
    scale = np.maximum(abs(design).max(axis=0), 1e-12)
    x = design / scale
    width = x.shape[1]
    squares, products = np.zeros((count, width, width)), np.zeros((count, width))
    np.add.at(squares, group, weight[:, None, None] * x[:, :, None] * x[:, None, :])
    np.add.at(products, group, (weight * y)[:, None] * x)
    draws = np.vstack([np.ones(count), bootstrap.weights(count)])
    drawn = np.einsum("rc,cij->rij", draws, squares), draws @ products
    found = (np.linalg.pinv(drawn[0], hermitian=True) @ drawn[1][..., None])[:, -1, 0] / scale[-1]
    return estimate.of(float(found[0]), bootstrap.interval(float(found[0]), found[1:], count))
