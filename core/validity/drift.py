"""Rules about time: the machine is the same from the first run to the last, so that backends, which
run one after the other, are compared on the same machine."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from core.experiment import dose, plan
from core.experiment.events import POWER_CAP, Gpu
from core.stats.arrays import Floats
from core.validity.evidence import Evidence
from core.validity.problem import Problem, Severity, problems

BUSY_PCT = 10  # utilisation, below which a sample says nothing about a GPU under load
THROTTLED = 0.01  # share of samples: more than a stray one of a long experiment
CAPPED = 0.1  # share of samples at the power limit, which heavy prefill may touch now and then
CLOCK_DRIFT = 0.03  # as large as the differences that backends are compared for
WARMING_C = (
    10.0  # over which leakage, and with it the boost clock at a given power, changes visibly
)
TPOT_DRIFT = 0.03  # as CLOCK_DRIFT
CHANGE = 0.002  # p: two backends of an experiment without any drift are suspected once in 250 times
EDGE = 3  # runs on either side of a change, at least
MIN_RUNS = 10  # of a backend, below which order and chance cannot be separated


class Timed(NamedTuple):
    """A run, as its place in time is looked at."""

    dataset: str
    tpot: float
    tokens: int


Shift = tuple[float, float, str]  # before, after, and what was before what


def one_node(seen: Evidence) -> list[Problem] | None:
    """All backends were measured on the same machine."""
    nodes: dict[str, set[str]] = defaultdict(set)
    for run, result in seen.results.items():
        if result.node:
            nodes[run.partition("/")[0]].add(result.node)
    first = next(iter(nodes.values()), set())

    def wrong(own: set[str]) -> str:
        if own == first and len(own) == 1:
            return ""
        return f"it was measured on {', '.join(sorted(own))}"

    def severity(own: set[str]) -> Severity:
        """Where backends have no node in common, what they differ by may be the nodes'."""
        return "doubtful" if own & first else "invalid"

    remedy = 'measure all backends on one node, as pair = "node" in [cluster] does'
    return problems(severity, nodes, wrong, remedy)


def throttled_gpus(seen: Evidence) -> list[Problem] | None:
    """No GPU was held back: by heat or a power brake, or for a good part of the time by its power
    limit."""
    reasons: dict[str, list[Sequence[str]]] = defaultdict(list)
    for sample in seen.journal.samples:
        for gpu in sample.gpus:
            if _is_busy(gpu) and gpu.throttled is not None:
                reasons[f"{sample.backend}/gpu{gpu.index}"].append(gpu.throttled)

    def wrong(samples: list[Sequence[str]]) -> str:
        shares = {
            r: sum(r in s for s in samples) / len(samples)
            for r in sorted({r for s in samples for r in s})
        }
        over = [
            f"{share:.0%} by {r}"
            for r, share in shares.items()
            if share > (CAPPED if r == POWER_CAP else THROTTLED)
        ]
        return f"slowed down in {', '.join(over)} of {len(samples)} samples" if over else ""

    return problems(
        "doubtful",
        reasons,
        wrong,
        "cool the machine or lock the clocks (nvidia-smi -lgc), and run again",
    )


def gpu_clocks(seen: Evidence) -> list[Problem] | None:
    """The SM clock under load is the same in the first runs and the last, and for every backend."""

    def wrong(shift: Shift) -> str:
        before, after, what = shift
        moved = after / before - 1
        return f"SM clock {before:.0f} → {after:.0f} MHz {what}" if abs(moved) > CLOCK_DRIFT else ""

    shifts = _shifts(seen, lambda gpu: gpu.sm_clock_mhz)
    return problems(
        "doubtful",
        shifts,
        wrong,
        "lock the clocks (nvidia-smi -lgc), or take starts = 2 or more",
    )


def gpu_temperatures(seen: Evidence) -> list[Problem] | None:
    """No GPU was cold when measuring began."""

    def wrong(shift: Shift) -> str:
        before, after, what = shift
        return f"{before:.0f} → {after:.0f} °C {what}" if abs(after - before) > WARMING_C else ""

    shifts = _shifts(seen, lambda gpu: gpu.temperature_c)
    return problems(
        "doubtful",
        shifts,
        wrong,
        "warm up longer (warmup_requests), or take starts = 2 or more",
    )


def drift_over_time(seen: Evidence) -> list[Problem] | None:
    """TPOT does not go with the order of a backend's runs. Not judged where that is the order of
    the datasets."""
    if not seen.config or not (
        seen.config.experiment.shuffle or seen.config.experiment.repeats > 1
    ):
        return None
    series = {name: runs for name, runs in _in_order(seen).items() if len(runs) >= MIN_RUNS}
    experiment = seen.config.experiment
    turned = experiment.interleave or experiment.starts != 1
    order = ", and backends ran one after the other: their difference may contain as much"

    def wrong(runs: list[Timed]) -> str:
        levels, freedom = _levels(runs)
        place, p = _change(levels, freedom)
        moved = float(np.expm1(np.median(levels[place:]) - np.median(levels[:place])))
        if p >= CHANGE or abs(moved) <= TPOT_DRIFT:
            return ""
        what = f"TPOT moves by {moved:+.1%} after {place} of its {len(runs)} runs, p = {p:.1g}"
        return what if turned else what + order

    turns = "" if turned else "take starts = 2 or more, and "
    return problems("doubtful", series, wrong, f"{turns}look for other load, heat and clocks")


def _in_order(seen: Evidence) -> dict[str, list[Timed]]:
    """Backend, or one of its several starts, → its runs with natural routing, in order of time: a
    restart moves all runs behind it, which is no drift."""
    several = {run.partition("/")[0] for run, r in seen.results.items() if (r.start or 1) > 1}
    series: dict[str, list[Timed]] = defaultdict(list)
    for run in sorted(seen.journal.started, key=lambda run: seen.journal.started[run]):
        result = None if dose.of_label(run) else seen.results.get(run)
        if result and result.mean_tpot_ms and result.total_input_tokens is not None:
            backend, dataset = run.partition("/")[0], plan.dataset_of(run)
            tokens = result.total_input_tokens + result.total_output_tokens
            name = f"{backend}, start {result.start}" if backend in several else backend
            series[name].append(Timed(dataset, result.mean_tpot_ms, tokens))
    return series


def _levels(runs: Sequence[Timed]) -> tuple[Floats, int]:
    """Logarithms of TPOT in order of time, less what the dataset accounts for: its mean where it
    ran several times, else a straight line over the logarithm of its tokens; and how many of them
    are free."""
    logs = np.log([run.tpot for run in runs])
    names, group = np.unique([run.dataset for run in runs], return_inverse=True)
    if len(names) < len(runs):
        means = np.bincount(group, logs) / np.bincount(group)
        return logs - means[group], len(runs) - len(names)
    tokens = np.log([max(run.tokens, 1) for run in runs])
    if np.ptp(tokens):
        logs = logs - np.polyval(np.polyfit(tokens, logs, 1), tokens)
    return logs, len(runs) - 1


def _change(levels: Floats, freedom: int) -> tuple[int, float]:
    """Where a series changes most, and the p of that being chance: the smaller of two, doubled.

    Pettitt (1979) sees a step: K = max |2 Σ ranks - t (n + 1)|, p = 2 exp(-6 K² / (n³ + n²)).
    Spearman's correlation with time, on Fisher's scale, sees a trend, of fewer runs too. `freedom`
    of n - 1 levels are free.
    """
    n = len(levels)
    ranks = levels.argsort().argsort() + 1.0
    before = np.arange(1, n)
    walk = abs(2 * ranks.cumsum()[:-1] - before * (n + 1))
    step = 2 * math.exp(-6 * float(walk.max()) ** 2 * freedom / (n - 1) / (n**3 + n**2))
    rho = float(np.clip(np.corrcoef(np.arange(n), ranks)[0, 1], -0.999, 0.999))
    trend = math.erfc(abs(math.atanh(rho)) * math.sqrt(max(freedom - 2, 0) / 2))
    apart = (walk / np.sqrt(before * (n - before)))[
        EDGE - 1 : n - EDGE
    ]  # of the two means, in standard errors
    return int(apart.argmax()) + EDGE, min(1.0, 2 * min(step, trend))


def _shifts(seen: Evidence, of: Callable[[Gpu], float | None]) -> dict[str, Shift]:
    """What a value of each GPU under load was in a backend's first runs and last, and at the first
    backend and this."""
    series = _by_gpu(seen, of)
    shifts: dict[str, Shift] = {}
    first: dict[str, tuple[str, float]] = {}
    for name, runs in series.items():
        backend, _, gpu = name.partition("/")
        values = np.array([np.median(samples) for samples in runs.values()])
        if len(values) >= MIN_RUNS:
            shifts[name] = (*_thirds(values), "from its first runs to its last")
        other, level = first.setdefault(gpu, (backend, float(np.median(values))))
        if other != backend:
            shifts[f"{name} against {other}"] = (
                level,
                float(np.median(values)),
                "from the one to the other",
            )
    return shifts


def _by_gpu(seen: Evidence, of: Callable[[Gpu], float | None]) -> dict[str, dict[str, list[float]]]:
    """`baseline/gpu0` → run → the samples of its value under load; in order of time."""
    series: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for sample in seen.journal.samples:
        for gpu in sample.gpus:
            if _is_busy(gpu) and (value := of(gpu)) is not None:
                series[f"{sample.backend}/gpu{gpu.index}"][sample.run].append(value)
    return series


def _is_busy(gpu: Gpu) -> bool:
    return gpu.utilisation_pct is not None and gpu.utilisation_pct >= BUSY_PCT


def _thirds(values: Floats) -> tuple[float, float]:
    """Medians of the first third and of the last."""
    third = len(values) // 3
    return float(np.median(values[:third])), float(np.median(values[-third:]))
