"""What imbalance costs an engine step: step time against tokens, requests and the busiest rank's
extra load.

time = a + b · tokens + c · prompt tokens + d · requests + m · extra, where extra is the busiest
rank's load less the mean over ranks (experts, without expert parallelism), in tokens, mean over
layers; 0 for a perfectly balanced router. Fitted by Huber's M-estimator, since a few steps are slow
for reasons of their own; intervals by the bootstrap over runs, or over blocks of neighbouring steps
where runs are few: each resample takes one Newton step of Huber's equations from the estimate, so
that it weighs the steps anew. It is an association within the log: a balanced router saves m ·
extra at most, if extra is what causes it.
"""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

from core.analysis.step_sample import StepSample
from core.stats import bootstrap, estimate
from core.stats.arrays import Floats
from core.stats.estimate import Estimate

MIN_STEPS = 50
MIN_RUNS = 8
HUBER = 1.345


class StepModel(msgspec.Struct, frozen=True, kw_only=True):
    """`per_token`: µs a step for a token of extra load; `marginal`: µs for 0.1 of max/mean at the
    mean load.

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
        who = f"{backend}, {self.phase} steps"
        if self.saved.value is None:
            return f"{who}: no cost of imbalance is estimated: {self.saved.reason}"
        cost = f"{self.marginal.shown('+.3g')} µs a step for 0.1 of max/mean over {self.unit}s"
        facts = f"{cost}, n = {self.n} steps"
        if not self.sees_a_cost:
            most = max(0.0, self.saved.interval[1]) if self.saved.interval else 0.0
            return (
                f"{who}: no cost of imbalance is detected ({facts}; at most {most:.1f} % of a step)"
            )
        saved = f"at most {self.saved.shown('.1f')} % of the step time"
        return f"{who}: imbalance costs {facts}; a perfectly balanced router would save {saved}"


def fit(sample: StepSample, phase: str) -> StepModel:
    """`phase`: "decode" (steps without prompt tokens) or "prefill" (with)."""
    of = sample.of_phase(phase)
    y, extra, n = of["duration_us"], of["extra"], len(of.rows)
    if n < MIN_STEPS or not np.ptp(extra):
        reason = (
            f"n = {n} steps, {MIN_STEPS} are needed" if n < MIN_STEPS else "the load never varies"
        )
        null = estimate.none(reason)
        return StepModel(
            phase=phase, n=n, unit=sample.unit, per_token=null, marginal=null, saved=null
        )
    count, drawn = _resampled(of)
    return StepModel(
        phase=phase,
        n=n,
        unit=sample.unit,
        per_token=_estimate(drawn[:, 0], count),
        marginal=_estimate(0.1 * drawn[:, 0] * drawn[:, 2], count),
        saved=_estimate(100 * drawn[:, 0] * drawn[:, 1] / float(np.median(y)), count),
    )


def held_fixed(sample: StepSample) -> Floats:
    """[steps]: step time, in µs, as it would be at the mean tokens, prompt tokens and requests of
    these steps."""
    design, y = _design(sample), sample["duration_us"]
    fitted, _ = _huber(design, y)
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


def _huber(design: Floats, y: Floats) -> tuple[Floats, float]:
    """Huber's M-estimate of the coefficients after ten rounds, and the residual from which on a
    step counts as slow."""
    weight, limit = np.ones(len(y)), np.inf
    for _ in range(10):
        root = np.sqrt(weight)
        found = np.linalg.lstsq(design * root[:, None], y * root, rcond=None)[0]
        size = abs(y - design @ found)
        limit = HUBER * max(float(np.median(size)) / 0.6745, 1e-9)
        weight = np.minimum(1.0, limit / np.maximum(size, 1e-12))
    return np.asarray(found), limit


def _groups(run: Floats) -> tuple[npt.NDArray[np.int64], int]:
    """What the bootstrap draws: runs, or blocks of neighbouring steps."""
    names, group = np.unique(run, return_inverse=True)
    if len(names) < MIN_RUNS:
        group = np.arange(len(run)) // int(np.ceil(bootstrap.block_length(len(run))))
    return group, int(group.max()) + 1


def _resampled(of: StepSample) -> tuple[int, Floats]:
    """How many groups are drawn; [1 + resamples]: cost, mean extra load, mean load, those of all
    steps first."""
    design, y = _design(of), of["duration_us"]
    group, count = _groups(of["run"])
    scale = np.maximum(abs(design).max(axis=0), 1e-12)
    x = design / scale
    found, limit = _huber(x, y)
    left = y - x @ found
    per_step = np.column_stack(
        [
            *(
                (abs(left) <= limit) * x[:, i] * x[:, j]
                for i in range(x.shape[1])
                for j in range(x.shape[1])
            ),
            *(np.clip(left, -limit, limit) * column for column in x.T),
            np.ones(len(y)),
            of["extra"],
            of["mean_load"],
        ]
    )
    sums = np.zeros((count, per_step.shape[1]))
    np.add.at(sums, group, per_step)
    drawn = np.vstack([np.ones(count), bootstrap.weights(count)]) @ sums
    width = x.shape[1]
    slopes, pulls = drawn[:, : width**2].reshape(-1, width, width), drawn[:, width**2 : -3]
    moved = found + (np.linalg.pinv(slopes, hermitian=True) @ pulls[..., None])[..., 0]
    moved[0] = found
    return count, np.column_stack([moved[:, -1] / scale[-1], drawn[:, -2:] / drawn[:, -3:-2]])


def _estimate(drawn: Floats, count: int) -> Estimate:
    """Of all steps, with what the resamples make of its interval."""
    return estimate.of(float(drawn[0]), bootstrap.interval(float(drawn[0]), drawn[1:], count))
