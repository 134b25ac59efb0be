"""The cost model: how long an engine step takes, by its batch and by the work of its busiest rank.

    step time = a + b · requests + c · context tokens + d · prompt tokens + Σ cost · work

`work`, summed over layers, is the price of the busiest rank by a price list of the kernel; where
there is none, its active experts and its waves (each tiling's by themselves); where the kernel has
no tiling, its active experts and its tokens. Fitted to single steps by Huber's M-estimate, for one
backend and one phase at a time. Steps whose work is open, since rows of padding may have woken
experts, are left out where there are enough of others.

How good it is shows in runs that it has not seen: the median step of each run, with its dataset
left out of the fit; and of naturally routed runs, fitted to those of forced routing. Rivals, which
take another measure for the work, stand beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np

from core.analysis import step_work
from core.analysis.step_sample import StepSample
from core.experiment import dose, plan
from core.recorder.gatescope_recorder.kernel import Kernel
from core.stats import bootstrap, estimate, robust
from core.stats.arrays import Bools, Floats, Ints
from core.stats.estimate import Estimate

MIN_STEPS = 50
MIN_NATURAL = 5  # runs, for R² of them
MIN_RUNS = 8  # fewer: intervals rest on blocks of neighbouring steps
PRICE, WAVES = "the kernel's price list", "active experts and waves"
ROWS, ACTIVE = "active experts and tokens", "active experts"
WORK = {  # best first
    PRICE: ("price_us",),
    WAVES: ("active", "amount"),
    ROWS: ("active", "rows"),
}
RIVALS = {
    WAVES: ("active", "amount"),
    "tiles": ("tiles",),
    ACTIVE: ("active",),
    "max/mean": ("ratio",),
    "CV": ("cv",),
    "the batch alone": (),
}
BATCH = ("prefill_tokens", "requests", "context")
OWN = 1e-3  # share of its variance that others do not explain, from which a column has a cost


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """What a model by one measure of work predicts of runs that it was not fitted to: R² of their
    median steps, and the mean and the largest error in % of their mean. `natural_…`: of natural
    runs, fitted to forced ones."""

    by: str
    r2: float | None = None
    error: float | None = None
    worst: float | None = None
    natural_r2: float | None = None
    natural_error: float | None = None


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """How well a model predicts the median steps of runs it knows nothing of, as `Quality` has it;
    `offset_us`: what is measured over what was predicted, median over runs, and `after`: the mean
    error once that is added. `within`: R² by tokens a step, where the medians vary by over 3 %."""

    runs: int
    r2: float | None
    error: float
    worst: float
    offset_us: float
    after: float
    within: dict[int, float]


class CostModel(msgspec.Struct, frozen=True, kw_only=True):
    """One backend's, for "decode" or "prefill" steps. `terms`: µs a unit. `reason`: why there is
    none. `left_out`: what each prediction left out of the fit."""

    phase: str
    by: str = ""
    terms: dict[str, Estimate] = {}
    steps: int = 0
    runs: int = 0
    left_out: str = ""
    qualities: list[Quality] = []
    reason: str | None = None

    @property
    def costs(self) -> dict[str, float]:
        """µs a unit of work, by column."""
        return {
            name: found.value or 0.0
            for name, found in self.terms.items()
            if self.by and name.partition(" ")[0] in WORK[self.by]
        }

    def work_us(self, of: StepSample, kind: Literal["", "fair_", "most_"] = "") -> Floats:
        """[steps]: what the work of each costs; or a fair router's, on the same batch; or the most
        that it can be with rows of padding."""
        names = [f"{kind}{name}" for name in self.costs]
        return np.asarray(_columns(of, names) @ np.array(list(self.costs.values())))

    def cost_us(self, figures: Floats, tokens: Ints, kernel: Kernel | None) -> Floats:
        """[steps]: what the work of `figures` [steps, step_work.FIGURES] costs in steps of
        `tokens`."""
        total = np.zeros(len(tokens))
        for name, cost in self.costs.items():
            kind, _, blocks = name.partition(" ")
            values = figures[:, step_work.FIGURES.index(kind)]
            has = step_work.has_blocks(kernel, tokens, blocks) if blocks else True
            total += cost * np.where(has, values, 0.0)
        return total

    def open_work(self, of: StepSample) -> list[tuple[float, float]]:
        """For each column of work: its mean over a fair router's, and the standard error of its
        cost."""
        found = []
        for name in self.costs:
            over = _column(of, name) - _column(of, f"fair_{name}")
            low, high = self.terms[name].interval or (0.0, 0.0)
            found.append((float(over.mean()), (high - low) / (2 * bootstrap.Z)))
        return found

    def predict_us(self, sample: StepSample) -> Floats:
        """[steps]: the time of each."""
        names = list(self.terms)
        values = [self.terms[name].value or 0.0 for name in names]
        return np.asarray(_columns(sample, names) @ np.array(values))


def fit(sample: StepSample, phase: str) -> CostModel:
    """The best measure of work that the log has, with its rivals beside it."""
    of = closed(sample.of_phase(phase), MIN_STEPS)
    if len(of.rows) < MIN_STEPS:
        return CostModel(phase=phase, reason=f"n = {len(of.rows)} steps, {MIN_STEPS} are needed")
    by = next((by for by, names in WORK.items() if np.isfinite(_columns(of, names)).all()), "")
    if not by:
        return CostModel(phase=phase, reason="EPLB moves experts, so active ones are in no log")
    names = _names(of, WORK[by])
    if not any(name.partition(" ")[0] in WORK[by] for name in names):
        return CostModel(phase=phase, reason="the work of a step never varies")
    design = _columns(of, names)
    values = robust.fit(design, of["duration_us"])
    group, count = groups(of)
    drawn = robust.resampled(design, of["duration_us"], group, bootstrap.weights(count))
    return CostModel(
        phase=phase,
        by=by,
        terms={
            name: estimate.of(float(value), bootstrap.interval(float(value), column, count))
            for name, value, column in zip(names, values, drawn.T, strict=True)
        },
        steps=len(of.rows),
        runs=len(np.unique(of["run"])),
        left_out=_folds(of)[0],
        qualities=_qualities(of, by),
    )


def closed(of: StepSample, enough: int) -> StepSample:
    """The steps whose work is known; all, where fewer than `enough` are."""
    found = of.where(~of.open)
    return found if len(found.rows) >= enough else of


def check(model: CostModel, sample: StepSample) -> Check:
    """`model` against the runs of a sample that it was not fitted to."""
    of = closed(sample.of_phase(model.phase), 1)
    runs = np.unique(of["run"])
    y, guess = (_medians(of, v, runs) for v in (of["duration_us"], model.predict_us(of)))
    sizes = np.array([np.median(of["tokens"][of["run"] == run]) for run in runs])
    offset = float(np.median(y - guess))
    found = _errors(guess, y)
    varied = [size for size in np.unique(sizes) if _varies(y[sizes == size])]
    return Check(
        runs=len(runs),
        r2=found["r2"],
        error=found["error"] or 0.0,
        worst=found["worst"] or 0.0,
        offset_us=offset,
        after=_errors(guess + offset, y)["error"] or 0.0,
        within={
            int(size): _errors((guess + offset)[sizes == size], y[sizes == size])["r2"] or 0.0
            for size in varied
        },
    )


def _varies(y: Floats) -> bool:
    return len(y) > 2 and bool(np.ptp(y) > 0.03 * y.mean())


def held_fixed(model: CostModel, of: StepSample) -> Floats:
    """[steps]: their times, in µs, as they would be with the mean batch of these steps."""
    batch = [name for name in model.terms if name in BATCH]
    values = np.array([model.terms[name].value or 0.0 for name in batch])
    columns = _columns(of, batch)
    return np.asarray(of["duration_us"] - (columns - columns.mean(axis=0)) @ values)


def groups(of: StepSample) -> tuple[Ints, int]:
    """What intervals rest on: runs, or blocks of neighbouring steps where runs are few."""
    names, group = np.unique(of["run"], return_inverse=True)
    if len(names) < MIN_RUNS:
        group = np.arange(len(of.rows)) // int(np.ceil(bootstrap.block_length(len(of.rows))))
    return group, int(group.max()) + 1


# --- columns ---


def _names(of: StepSample, work: Sequence[str]) -> list[str]:
    """Intercept, and what of the batch and the work says something that those before do not; waves
    by the tiling that they are of. Prompts of one length, say, have their tokens' cost alone."""
    names = ["fixed"]
    for name in (*BATCH, *work):
        found = [f"amount {m}x{n}" for m, n in of.blocks] if name == "amount" else [name]
        names += [one for one in found if _is_new(of, one, names[1:])]
    return names


def _is_new(of: StepSample, name: str, names: Sequence[str]) -> bool:
    mine, *others = (_column(of, one) for one in (name, *names))
    if not np.ptp(mine):
        return False
    mine, *others = ((one - one.mean()) / np.ptp(one) for one in (mine, *others))
    design = np.column_stack([np.zeros((len(mine), 0)), *others])
    left = mine - design @ np.linalg.lstsq(design, mine, rcond=None)[0]
    return bool(left @ left > OWN * (mine @ mine))


def _columns(of: StepSample, names: Sequence[str]) -> Floats:
    """[steps, names]."""
    return np.column_stack([np.zeros((len(of.rows), 0)), *(_column(of, name) for name in names)])


def _column(of: StepSample, name: str) -> Floats:
    if name == "fixed":
        return np.ones(len(of.rows))
    if name == "ratio":
        return 1 + of["extra"] / of["mean_load"]
    name, _, blocks = name.partition(" ")  # "amount 64x128": the waves of that tiling
    if not blocks:
        return of[name]
    has = step_work.has_blocks(of.kernel, of["tokens"].astype(np.int64), blocks)
    return np.where(has, of[name], 0.0)


# --- how good it is ---


def _qualities(of: StepSample, by: str) -> list[Quality]:
    rivals = {by: WORK[by]} | {k: v for k, v in RIVALS.items() if k != by}
    return [
        _quality(of, name, _names(of, work))
        for name, work in rivals.items()
        if np.isfinite(_columns(of, work)).all()
    ]


def _quality(of: StepSample, by: str, names: Sequence[str]) -> Quality:
    runs = np.unique(of["run"])
    y = _medians(of, of["duration_us"], runs)
    _, folds = _folds(of)
    forced = np.array([bool(dose.of_label(of.labels[int(run)])) for run in runs])
    quality = Quality(by=by)
    if len(np.unique(folds)) > 1:
        guess = np.zeros(len(runs))
        for fold in np.unique(folds):
            out = folds == fold
            guess[out] = _guess(of, names, np.isin(of["run"], runs[~out]), runs[out])
        quality = Quality(by=by, **_errors(guess, y))
    if forced.any() and (~forced).sum() >= MIN_NATURAL:
        natural = _guess(of, names, np.isin(of["run"], runs[forced]), runs[~forced])
        found = _errors(natural, y[~forced])
        quality = msgspec.structs.replace(
            quality, natural_r2=found["r2"], natural_error=found["error"]
        )
    return quality


def _guess(of: StepSample, names: Sequence[str], on: Bools, runs: Floats) -> Floats:
    """The median steps of `runs`, by a fit on the steps that `on` marks."""
    design = _columns(of, names)
    values = robust.fit(design[on], of["duration_us"][on])
    return _medians(of, design @ values, runs)


def _medians(of: StepSample, values: Floats, runs: Floats) -> Floats:
    return np.array([np.median(values[of["run"] == run]) for run in runs])


def _errors(guess: Floats, y: Floats) -> dict[str, float | None]:
    spread = float(((y - y.mean()) ** 2).sum())
    error = abs(guess - y) / y.mean() * 100
    r2 = 1 - float(((y - guess) ** 2).sum()) / spread if spread > 0 else None
    return {"r2": r2, "error": float(error.mean()), "worst": float(error.max())}


def _folds(of: StepSample) -> tuple[str, Ints]:
    """What is left out at a time, and the fold of each run: its dataset, or where there are few
    datasets the run itself."""
    runs = np.unique(of["run"]).astype(int)
    datasets = [plan.dataset_of(of.labels[run]) for run in runs]
    if len(set(datasets)) >= 3:
        return "dataset", np.unique(datasets, return_inverse=True)[1]
    return "run", np.arange(len(runs))
