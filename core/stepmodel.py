"""What imbalance costs an engine step: step time against tokens, requests and the busiest rank's extra load.

time = a + b · tokens + c · prompt tokens + d · requests + m · extra, where extra is the busiest rank's load less the
mean over ranks (experts, without expert parallelism), in tokens, mean over layers; 0 for a perfectly balanced router.
Fitted by Huber's weighted least squares, since a few steps are slow for reasons of their own; intervals by the
bootstrap over runs, or over blocks of neighbouring steps where runs are few. It is an association within the log:
a balanced router saves m · extra at most, if extra is what causes it.
"""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

from core import bootstrap, estimate
from core.bootstrap import Floats
from core.estimate import Estimate
from core.stepsample import StepSample

MIN_STEPS = 50
MIN_RUNS = 8
HUBER = 1.345


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


def fit(sample: StepSample, phase: str) -> StepModel:
    """`phase`: "decode" (steps without prompt tokens) or "prefill" (with)."""
    of = sample.of_phase(phase)
    y, extra, n = of["duration_us"], of["extra"], len(of.rows)
    if n < MIN_STEPS or not np.ptp(extra):
        reason = f"n = {n} steps, {MIN_STEPS} are needed" if n < MIN_STEPS else "the load never varies"
        null = estimate.none(reason)
        return StepModel(phase=phase, n=n, unit=sample.unit, per_token=null, marginal=null, saved=null)
    design = _design(of)
    weight = _huber(design, y)
    groups, count = _groups(of["run"])
    cost = _coefficient(design, y, weight, groups, count)
    return StepModel(
        phase=phase,
        n=n,
        unit=sample.unit,
        per_token=cost,
        marginal=cost.scaled(0.1 * float(of["mean_load"].mean())),
        saved=cost.scaled(100 * float(extra.mean()) / float(np.median(y))),
    )


def held_fixed(sample: StepSample) -> Floats:
    """[steps]: step time, in µs, as it would be at the mean tokens, prompt tokens and requests of these steps."""
    design, y = _design(sample), sample["duration_us"]
    root = np.sqrt(_huber(design, y))
    fitted = np.linalg.lstsq(design * root[:, None], y * root, rcond=None)[0]
    confounders = design[:, 1:-1]
    return np.asarray(y - (confounders - confounders.mean(axis=0)) @ fitted[1:-1])


def _design(sample: StepSample) -> Floats:
    """Intercept, the confounders that vary and are not each other, and last the extra load."""
    columns: list[Floats] = []
    for name in ("tokens", "prefill_tokens", "requests"):
        column = sample[name]
        if np.ptp(column) and not any(np.array_equal(column, known) for known in columns):
            columns.append(column)
    return np.column_stack([np.ones(len(sample.rows)), *columns, sample["extra"]])


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
