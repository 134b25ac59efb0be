"""Gate logs → load imbalance: CVs, noise floor, excess CV, max/mean per expert and rank, entropy,
Gini.

Definitions, with x[s, l, e] the tokens that expert e of layer l got in step s, and n the tokens of
a step:

- CV(x) = population std(x) / (mean(x) + 1e-10) over the experts.
- per-step CV: mean of CV over all (s, l). aggregated CV: CV of Σ x over layers and steps of ≤ 1000
  tokens. Both are upstream's. layer CV: Σ over steps, CV, mean over layers.
- noise floor: what a perfectly fair router shows by chance, floor² = (E/k²) Σ_e p(1-p)/(n-1), p =
  x/n. A token picks k distinct experts, so each x_e is a sum of n draws with variance p(1-p); n-1
  makes the estimate unbiased.
- excess CV = √max(0, mean(CV²) - mean(floor²)): means before the root, so that a fair router's
  tends to 0. It is null, with a reason, where its square does not rise above its own standard
  error.
- rank imbalance: mean over (s, l) of max/mean load over EP ranks, under the placement of the moment
  (`placement`: as vLLM starts, or by EPLB's logged maps, replicas sharing evenly:
  core.routing.eplb); expert imbalance: the same over experts.
- entropy (of 1), Gini, hottest expert's share: of each layer's Σ over steps, mean over layers. Dead
  experts: of all layers × experts, those that got no token.
- intervals: 95 %, over blocks of steps (core.stats.bootstrap): what other steps of the same traffic
  might have shown. Steps share their requests, so blocks are made long enough that neighbours no
  longer go together.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from msgspec.structs import replace

from core.routing import folder as gate_folder
from core.routing import upstream
from core.routing.folder import GateFolder
from core.routing.gatelog import GateLog, GateLogError
from core.routing.meter import MAX_AGGREGATED_TOKENS, SUMS, Meter, RunBlocks
from core.routing.meter import WARMUP as WARMUP
from core.routing.steps import CHUNK
from core.routing.steps import cv as cv
from core.routing.steps import floor_squared as floor_squared
from core.stats import bootstrap
from core.stats.arrays import Floats
from core.stats.bootstrap import Interval

ONE_TOKEN = "every step has a single token: CV says nothing about the router"


class Excess(msgspec.Struct, frozen=True):
    """An excess CV with its interval, or null and the reason why n does not support one."""

    value: float | None
    reason: str | None = None
    interval: Interval | None = None


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """The steps with prompt tokens in them (prefill), or those without (decode)."""

    steps: int
    tokens: int
    per_step_cv: float
    noise_floor: float | None
    excess_cv: float | None
    excess_cv_reason: str | None
    excess_cv_interval: Interval | None
    layer_cv: float
    rank_imbalance: float | None


class Imbalance(msgspec.Struct, frozen=True, kw_only=True):
    """What one set of steps shows. Lists are by expert (loads summed over layers and steps), by
    layer or by rank."""

    per_step_cv: float
    aggregated_cv: float | None
    layer_cv: float
    noise_floor: float | None
    excess_cv: float | None
    excess_cv_reason: str | None
    aggregated_noise_floor: float | None
    aggregated_excess_cv: float | None
    aggregated_excess_cv_reason: str | None
    max_min_ratio: float | None
    rank_imbalance: float | None
    tokens: int
    steps: int
    layers: int
    expert_loads: list[float]
    left_out: dict[str, int] = {}  # steps not counted, by reason
    files: int = 1
    expert_imbalance: float | None = None
    entropy: float | None = None  # 1: even
    gini: float | None = None  # 0: even
    hottest_share: float | None = None  # of a layer's load
    dead_experts: int = 0
    layer_cvs: list[float] = []
    rank_loads: list[float] = []
    placement: str | None = (
        None  # of experts on EP ranks, when these steps ran; null without expert parallelism
    )
    intervals: dict[str, Interval | None] = {}  # 95 %, by the name of the measure
    prefill: Phase | None = None
    decode: Phase | None = None
    one_token_steps: int = 0
    violations: int = 0  # steps where Σ over experts is not top_k × tokens
    constant_loads: bool = False  # every step has the same loads


def measure_run(
    run: RunBlocks, left_out: dict[str, int] | None = None, files: int = 1
) -> Imbalance:
    """All measures of one run. GateLogError where no step is its own."""
    if not run.steps:
        raise GateLogError("no step of its own with tokens")
    whole = _Sums(run.rows.sum(axis=0), run.counts.sum(axis=0), run.small.sum(axis=0), run.top_k)
    blocks = run.grouped()
    drawn, replicates = _resampled(blocks, run.top_k)
    estimates, count = whole.figures(), len(blocks[0])
    intervals = {
        name: bootstrap.interval(float(v), replicates[name], count) for name, v in estimates.items()
    }
    excess = judged(whole.excess_squared(), drawn.excess_squared(), count)
    aggregated = judged(whole.aggregated_excess_squared(), drawn.aggregated_excess_squared(), count)
    if not whole["supported"]:
        excess = Excess(None, ONE_TOKEN)
    if not whole["small_tokens"]:
        aggregated = Excess(None, f"no step of {MAX_AGGREGATED_TOKENS} tokens or fewer")
    has_ranks, has_small = run.ranks > 0, bool(whole["small_tokens"])
    loads = whole.counts.sum(axis=0)
    prefill, decode = _phases(run, blocks, drawn)
    return Imbalance(
        per_step_cv=float(estimates["per_step_cv"]),
        aggregated_cv=float(estimates["aggregated_cv"]) if has_small else None,
        layer_cv=float(estimates["layer_cv"]),
        noise_floor=_root(whole.ratio("floor_squared", "supported")),
        excess_cv=excess.value,
        excess_cv_reason=excess.reason,
        aggregated_noise_floor=_root(whole.aggregated_floor_squared()) if has_small else None,
        aggregated_excess_cv=aggregated.value,
        aggregated_excess_cv_reason=aggregated.reason,
        max_min_ratio=float(whole.small.max() / whole.small.min())
        if whole.small.min() > 0
        else None,
        rank_imbalance=float(estimates["rank_imbalance"]) if has_ranks else None,
        tokens=int(whole["tokens"]),
        steps=run.steps,
        layers=run.layers,
        expert_loads=loads.tolist(),
        left_out={reason: n for reason, n in (left_out or {}).items() if n},
        files=files,
        expert_imbalance=float(estimates["expert_imbalance"]),
        entropy=float(estimates["entropy"]),
        gini=float(np.nanmean(gini(whole.counts))),
        hottest_share=float(estimates["hottest_share"]),
        dead_experts=int((whole.counts == 0).sum()),
        layer_cvs=cv(whole.counts).tolist(),
        rank_loads=run.rank_loads.tolist() if has_ranks else [],
        placement=run.placed or None,
        intervals=_shown(intervals, excess, aggregated, has_ranks=has_ranks, has_small=has_small),
        prefill=prefill,
        decode=decode,
        one_token_steps=run.one_token,
        violations=run.violations,
        constant_loads=run.constant and run.steps > 1,
    )


class _Sums:
    """Sums over steps, of one run or of many resampled ones (then every array has a first axis of
    resamples)."""

    def __init__(self, rows: Floats, counts: Floats, small: Floats, top_k: float) -> None:
        self.rows, self.counts, self.small, self.top_k = rows, counts, small, top_k

    def __getitem__(self, name: str) -> Floats:
        return np.asarray(self.rows[..., SUMS.index(name)])

    def ratio(self, name: str, over: str) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(self[name] / self[over])

    def excess_squared(self) -> Floats:
        return self.ratio("cv_squared", "supported") - self.ratio("floor_squared", "supported")

    def aggregated_floor_squared(self) -> Floats:
        return floor_squared(self.small, self["small_tokens"], self.top_k)

    def aggregated_excess_squared(self) -> Floats:
        return np.asarray(cv(self.small) ** 2 - self.aggregated_floor_squared())

    def figures(self) -> dict[str, Floats]:
        """The measures that have an interval."""
        load = self.counts.sum(axis=-1, keepdims=True)
        share = self.counts / np.where(load > 0, load, 1)
        experts = share.shape[-1]
        spread = np.zeros_like(share)
        np.log(share, out=spread, where=share > 0)
        return {
            "per_step_cv": self.ratio("cv", "layers"),
            "aggregated_cv": cv(self.small),
            "layer_cv": cv(self.counts).mean(axis=-1),
            "rank_imbalance": self.ratio("rank_ratio", "layers"),
            "expert_imbalance": self.ratio("expert_ratio", "layers"),
            "entropy": np.asarray(-(share * spread).sum(axis=-1) / np.log(max(experts, 2))).mean(
                axis=-1
            ),
            "hottest_share": share.max(axis=-1).mean(axis=-1),
        }


def gini(loads: Floats) -> Floats:
    """Gini coefficient over the last axis: 0 even, (E-1)/E all in one; nan where there is no
    load."""
    experts = loads.shape[-1]
    place = 2 * np.arange(1, experts + 1) - experts - 1
    with np.errstate(invalid="ignore"):
        return np.asarray(
            (np.sort(loads, axis=-1) * place).sum(axis=-1) / experts / loads.sum(axis=-1)
        )


def _resampled(
    blocks: tuple[Floats, Floats, Floats], top_k: float
) -> tuple[_Sums, dict[str, Floats]]:
    """The sums of every resample of the blocks, but those by layer, and the measures that have an
    interval.

    Resamples are taken a few at a time, so that their counts by layer and expert stay in a
    processor's cache; float32 is plenty for the spread of what comes of those.
    """
    rows, counts, small = blocks
    draws = bootstrap.weights(len(rows))
    sums = _Sums(draws @ rows, np.zeros((len(draws), 0, 0)), draws @ small, top_k)
    flat, narrow = counts.reshape(len(rows), -1).astype(np.float32), draws.astype(np.float32)
    few = max(1, CHUNK // flat.shape[1])
    parts = []
    for some in (slice(place, place + few) for place in range(0, len(draws), few)):
        by_layer = (narrow[some] @ flat).reshape(-1, *counts.shape[1:])
        parts.append(_Sums(sums.rows[some], by_layer, sums.small[some], top_k).figures())  # type: ignore[arg-type]  # of float32
    return sums, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def judged(squared: Floats, replicates: Floats, blocks: int) -> Excess:
    """An excess CV from its square and the square's replicates."""
    if blocks < 2:
        return Excess(None, "too few steps: no standard error")
    usable = replicates[np.isfinite(replicates)]
    value, error = (
        float(squared),
        bootstrap.standard_error(usable, blocks) if len(usable) else np.nan,
    )
    if np.isnan(value) or np.isnan(error):
        return Excess(None, "too few tokens for a noise floor")
    if value <= error:
        return Excess(None, f"excess² {value:.4g} is not above its standard error {error:.4g}")
    ends = bootstrap.interval(value, replicates, blocks)
    low, high = ends or (value, value)
    return Excess(value**0.5, None, (max(low, 0.0) ** 0.5, high**0.5))


def _shown(
    intervals: dict[str, Interval | None],
    excess: Excess,
    aggregated: Excess,
    *,
    has_ranks: bool,
    has_small: bool,
) -> dict[str, Interval | None]:
    hidden = {"rank_imbalance": not has_ranks, "aggregated_cv": not has_small}
    shown = {name: ends for name, ends in intervals.items() if not hidden.get(name, False)}
    return shown | {"excess_cv": excess.interval, "aggregated_excess_cv": aggregated.interval}


def _phases(
    run: RunBlocks, blocks: tuple[Floats, Floats, Floats], drawn: _Sums
) -> tuple[Phase | None, Phase | None]:
    """Prefill and decode; the half of a row that has prompt tokens, and what it leaves of the other
    half."""
    width, whole = len(SUMS), run.rows.sum(axis=0)
    prompt, of_prompt = whole[width:], drawn.rows[:, width:]
    count, prompt_count = len(blocks[0]), int(np.count_nonzero(blocks[0][:, width]))
    others = run.counts.sum(axis=0) - run.prefill_counts
    prefill = _phase(run, prompt, of_prompt, run.prefill_counts, prompt_count)
    return prefill, _phase(
        run, whole[:width] - prompt, drawn.rows[:, :width] - of_prompt, others, count
    )


def _phase(run: RunBlocks, row: Floats, drawn: Floats, counts: Floats, blocks: int) -> Phase | None:
    none = np.zeros(run.experts)
    sums, resampled = _Sums(row, counts, none, run.top_k), _Sums(drawn, counts, none, run.top_k)
    if not sums["steps"]:
        return None
    excess = judged(sums.excess_squared(), resampled.excess_squared(), blocks)
    if not sums["supported"]:
        excess = Excess(None, ONE_TOKEN)
    return Phase(
        steps=int(sums["steps"]),
        tokens=int(sums["tokens"]),
        per_step_cv=float(sums.ratio("cv", "layers")),
        noise_floor=_root(sums.ratio("floor_squared", "supported")),
        excess_cv=excess.value,
        excess_cv_reason=excess.reason,
        excess_cv_interval=excess.interval,
        layer_cv=float(cv(sums.counts).mean()),
        rank_imbalance=float(sums.ratio("rank_ratio", "layers")) if run.ranks else None,
    )


def _root(squared: Floats) -> float | None:
    return None if np.isnan(squared) else float(np.sqrt(max(float(squared), 0.0)))


def measure_segment(log: GateLog, label: str) -> Imbalance:
    """The steps of one run, and how many were left out because another run's tokens were in
    them."""
    return measure_segments([log], label)


def measure_segments(parts: Sequence[GateLog], label: str) -> Imbalance:
    """As `measure_segment`, of a log that was read in several parts. GateLogError where no step is
    the run's own."""
    meter = Meter()
    for part in parts:
        if len(part.tokens):  # a look at the log between two blocks finds no step
            meter.add(part)
    return of_meter(meter, label)


def of_meter(meter: Meter, label: str) -> Imbalance:
    """Of what was summed up of one run. GateLogError where no step is its own."""
    if label not in meter.runs:
        raise GateLogError(f"no step of {label} in the gate log")
    run = meter.runs[label]
    return measure_run(run, {"shared with another segment": run.shared})


# --- folders ---


def measure_folder(folder: Path) -> tuple[dict[str, Imbalance], list[str]]:
    """A folder of gate logs, or a folder of such folders → measures by name, and what could not be
    read.

    A binary log is split by its segments (`gates_logs_<label>`), as a run directory's is; a label
    that a later start of the server logged again is the later one's.
    """
    if not folder.is_dir():
        return {}, [f"{folder}: not a folder"]
    found: dict[str, Imbalance] = {}
    problems: list[str] = []
    for place in _log_folders(folder):
        for measured, problem in (_measure_json(place), _measure_binary(place)):
            found |= measured
            problems += problem
    if not found and not problems:
        problems.append(
            f"{folder}: no gate logs (*.gatelog, or gate_logs_<layer>.json) in it or in its folders"
        )
    return found, problems


def _log_folders(folder: Path) -> list[Path]:
    def holds_logs(place: Path) -> bool:
        return any(
            p.suffix == ".gatelog" or p.name.startswith("gate_logs_")
            for p in place.iterdir()
            if p.is_file()
        )

    if holds_logs(folder):
        return [folder]
    inner = sorted(
        (p for p in folder.iterdir() if p.is_dir()), key=lambda p: (gate_folder.start_of(p), p.name)
    )
    return [p for p in inner if holds_logs(p)] or [
        p for p in inner if p.name.startswith("gates_logs")
    ]


def _measure_json(folder: Path) -> tuple[dict[str, Imbalance], list[str]]:
    layers, problems = upstream.read_layers(folder)
    if not layers:
        if not problems and not list(folder.glob("*.gatelog")):
            problems.append(f"{folder}: holds no gate log")
        return {}, problems
    empty = sum(int((layer.tokens == 0).sum()) for layer in layers)
    try:
        run = upstream.run_of(folder.name, layers)
        measured = measure_run(run, {"no tokens": empty}, files=len(layers))
    except GateLogError as error:
        return {}, [*problems, f"{folder}: {error}"]
    steps, tokens = (
        max(int((x.tokens > 0).sum()) for x in layers),
        max(int(x.tokens.sum()) for x in layers),
    )
    # upstream's files do not tell prompt tokens from others
    return {
        folder.name: replace(measured, steps=steps, tokens=tokens, prefill=None, decode=None)
    }, problems


def _measure_binary(folder: Path) -> tuple[dict[str, Imbalance], list[str]]:
    files = len(list(folder.glob("*.gatelog")))
    if not files:
        return {}, []
    log, meter = GateFolder(folder), Meter()
    problems: list[str] = []
    try:
        for part in log.blocks():
            meter.add(part)
    except (GateLogError, OSError) as error:
        problems.append(str(error))
    if log.lost:
        problems.append(f"{log.lost}: cut off; what was whole is used")
    if log.left_out:
        problems.append(log.left_out)
    found: dict[str, Imbalance] = {}
    for label, run in sorted(meter.runs.items()):
        try:
            left_out = {
                "shared with another segment": run.shared,
                "of which a rank lost its part": log.incomplete,
            }
            found[f"gates_logs_{label}"] = measure_run(run, left_out, files)
        except GateLogError as error:
            problems.append(f"{folder}, {label}: {error}")
    if not meter.runs and not problems:
        problems.append(f"{folder}: holds no step")
    return found, problems + gate_folder.problems(folder)
