"""Gate logs → load imbalance: CVs, noise floor, excess CV, max/mean per expert and rank, entropy,
Gini.

Definitions, with x[s, l, e] the tokens that expert e of layer l got in step s, and n the tokens of
a step:

- CV(x) = population std(x) / (mean(x) + 1e-10) over the experts.
- per-step CV: mean of CV over all (s, l). aggregated CV: CV of Σ x over layers and steps of ≤ 1000
  tokens. Both are upstream's. layer CV: Σ over steps, CV, mean over layers.
- noise floor: the CV that a perfectly fair router shows by chance, floor² = (E/k²) Σ_e
  p(1-p)/(n-1), p = x/n. A token picks k distinct experts, so each x_e is a sum of n draws with
  variance p(1-p); n-1 makes the estimate unbiased.
  Tokens of one type may route alike: where the prompts' tokens are known (core.routing.repeats),
  the floor of a step with prompt tokens is that of 1/Σf² tokens, f the share of each type.
- excess CV = √max(0, mean(CV²) - mean(floor²)): means before the root, so that it tends to 0 for a
  fair router. It is null, with a reason, where its square is not above 1.96 standard errors, which
  allow for steps and layers that repeat each other (core.routing.excess, .recurrence). An
  aggregated excess is null too where the steps show none: sums over steps pair a request with
  itself, and so do not tell a router's preference from a request's.
- rank imbalance: mean over (s, l) of max/mean load over EP ranks, under the placement at that step:
  vLLM's at start-up, or the maps that EPLB logged, where replicas share tokens evenly
  (core.routing.eplb). expert imbalance: the same over experts.
- entropy (of 1), Gini, hottest expert's share: of each layer's Σ over steps, mean over layers. Dead
  experts: how many of all layers × experts got no token.
- busiest rank: active experts, tiles, waves and padded rows of the rank that a layer waits for,
  and its work over a fair router's (core.routing.work).
- intervals: 95 %, over blocks of steps (core.stats.bootstrap): what other steps of the same traffic
  might have shown. Steps share their requests, so blocks are made long enough that neighbours are
  no longer correlated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from core.errors import GateLogError
from core.routing import busiest, excess, measures, popularity
from core.routing.blocks import ALL_STEPS, PROMPT_STEPS, RunBlocks, StepSums, widened
from core.routing.busiest import BusiestRank
from core.routing.excess import Excess
from core.routing.gatelog import GateLog
from core.routing.measures import Measures, Resampled
from core.routing.meter import MAX_AGGREGATED_TOKENS, Meter
from core.routing.meter import WARMUP as WARMUP
from core.routing.nodes import NodeImbalance
from core.routing.popularity import Popularity
from core.routing.repeats import Repeats
from core.routing.steps import cv as cv
from core.routing.steps import floor_squared as floor_squared
from core.stats.arrays import Floats
from core.stats.bootstrap import Interval
from core.stats.descriptive import gini

ONE_TOKEN = "every step has a single token: CV says nothing about the router"
SHARED = "shared with another segment"


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """The steps with prompt tokens in them (prefill), or those without (decode)."""

    steps: int
    tokens: int
    per_step_cv: float
    noise_floor: float | None
    excess_cv: float | None
    excess_cv_reason: str | None
    excess_cv_interval: Interval | None
    excess_squared: float | None = None  # signed, as in Imbalance
    excess_squared_error: float | None = None
    excess_squared_interval: Interval | None = None
    layer_cv: float
    rank_imbalance: float | None
    busiest_rank: BusiestRank | None = None


class Imbalance(msgspec.Struct, frozen=True, kw_only=True):
    """What one set of steps shows. Lists are by expert (loads summed over layers and steps), by
    layer or by rank."""

    per_step_cv: float | None = None
    aggregated_cv: float | None = None
    layer_cv: float | None = None
    noise_floor: float | None = None
    excess_cv: float | None = None
    excess_cv_reason: str | None = None
    excess_squared: float | None = None  # signed: a value also at the noise floor
    excess_squared_error: float | None = None  # its standard error
    effective_steps: float | None = None  # those that do not repeat others
    effective_layers: float | None = None
    prompt_repeats: Repeats | None = None  # null: the floor takes prompts' tokens as unalike
    aggregated_noise_floor: float | None = None
    aggregated_excess_cv: float | None = None
    aggregated_excess_cv_reason: str | None = None
    max_min_ratio: float | None = None
    rank_imbalance: float | None = None
    tokens: int = 0
    steps: int = 0
    layers: int = 0
    expert_loads: list[float] = []
    left_out: dict[str, int] = {}  # steps not counted, by reason
    files: int = 1
    expert_imbalance: float | None = None
    entropy: float | None = None  # 1: even
    gini: float | None = None  # 0: even
    hottest_share: float | None = None  # of a layer's load
    dead_experts: int = 0
    layer_cvs: list[float] = []
    layer_numbers: list[int] = []  # the model's own, of `layer_cvs`; empty: counted from 0
    rank_loads: list[float | None] = []
    placement: str | None = None  # of experts on EP ranks; null without expert parallelism
    kernel: str | None = None  # that computes the experts, and where its tiling comes from
    busiest_rank: BusiestRank | None = None
    by_node: NodeImbalance | None = None  # of a server whose ranks are on several
    intervals: dict[str, Interval | None] = {}  # 95 %, by the name of the measure
    prefill: Phase | None = None
    decode: Phase | None = None
    one_token_steps: int = 0
    violations: int = 0  # steps where Σ over experts is not top_k × tokens
    constant_loads: bool = False  # every step has the same loads
    popularity: list[Popularity] = []  # of the experts, by layer

    def phase(self, name: str) -> Phase | None:
        """The steps of that phase, "prefill" or "decode"; None if there are none."""
        return self.prefill if name == "prefill" else self.decode


def measure_run(
    run: RunBlocks,
    left_out: dict[str, int] | None = None,
    files: int = 1,
    repeats: Repeats | None = None,
) -> Imbalance:
    """All measures of one run; `left_out`: steps not counted, by reason; `repeats`: of the prompts'
    tokens, where known. GateLogError if it has no step of its own."""
    if not run.steps:
        raise GateLogError("no step of its own with tokens")
    blocks = run.grouped(repeats)
    drawn, count = Resampled.of(blocks), len(blocks)
    whole = widened(run.rows.sum(axis=0), repeats)
    sums, drawn_sums = StepSums.of(whole[ALL_STEPS]), StepSums.of(drawn.rows[:, ALL_STEPS])
    counts, small = run.counts.sum(axis=0), run.small.sum(axis=0)
    found = _known(measures.of(sums, counts, small), run, sums)
    per_step = _excess(run, sums, drawn_sums, count)
    aggregated = _aggregated(run, drawn, count, per_step)
    phases = _phases(run, whole, drawn.rows, blocks.rows)
    prefill, decode = phases if run.phased else (None, None)
    return Imbalance(
        per_step_cv=float(found.per_step_cv),
        aggregated_cv=_optional(found.aggregated_cv),
        layer_cv=float(found.layer_cv),
        noise_floor=_noise_floor(sums),
        excess_cv=per_step.value,
        excess_cv_reason=per_step.reason,
        excess_squared=per_step.squared,
        excess_squared_error=per_step.error,
        effective_steps=run.recurrence.effective_steps(float(sums.steps)),
        effective_layers=run.recurrence.effective_layers(),
        prompt_repeats=repeats,
        aggregated_noise_floor=aggregated.noise_floor,
        aggregated_excess_cv=aggregated.excess.value,
        aggregated_excess_cv_reason=aggregated.excess.reason,
        max_min_ratio=float(small.max() / small.min()) if small.min() > 0 else None,
        rank_imbalance=_optional(found.rank_imbalance),
        tokens=int(sums.tokens),
        steps=run.steps,
        layers=run.layers,
        expert_loads=counts.sum(axis=0).tolist(),
        left_out={reason: n for reason, n in (left_out or {}).items() if n},
        files=files,
        expert_imbalance=float(found.expert_imbalance),
        entropy=float(found.entropy),
        gini=float(np.nanmean(gini(counts))),
        hottest_share=float(found.hottest_share),
        dead_experts=int((counts == 0).sum()),
        layer_cvs=cv(counts).tolist(),
        layer_numbers=list(run.layer_numbers),
        rank_loads=run.rank_loads.tolist() if run.ranks else [],
        placement=run.placed or None,
        kernel=busiest.in_words(run.kernel),
        busiest_rank=busiest.of(sums, drawn_sums, count, run),
        by_node=run.by_node.measured() if run.by_node else None,
        intervals=found.intervals(drawn.measures, count)
        | {
            "excess_cv": per_step.interval,
            "excess_squared": per_step.squared_interval,
            "aggregated_excess_cv": aggregated.excess.interval,
        },
        prefill=prefill,
        decode=decode,
        one_token_steps=run.one_token,
        violations=run.violations,
        constant_loads=run.constant and run.steps > 1,
        popularity=popularity.of_layers(blocks.counts),
    )


def _known(found: Measures, run: RunBlocks, sums: StepSums) -> Measures:
    """Without the measures that these steps do not support."""
    return replace(
        found,
        aggregated_cv=found.aggregated_cv if sums.small_tokens else None,
        rank_imbalance=found.rank_imbalance if run.ranks else None,
    )


def _optional(value: Floats | None) -> float | None:
    return None if value is None else float(value)


def _root(squared: Floats) -> float | None:
    return None if np.isnan(squared) else float(np.sqrt(max(float(squared), 0.0)))


def _noise_floor(sums: StepSums) -> float | None:
    return _root(sums.floor_squared / sums.supported) if sums.supported else None


def _excess(run: RunBlocks, sums: StepSums, drawn: StepSums, blocks: int) -> Excess:
    if not sums.supported:
        return Excess(None, ONE_TOKEN)
    totals = (float(each) for each in (sums.steps, sums.supported, sums.floor_fourth))
    chance = excess.by_chance(run.recurrence, *totals)
    return excess.judged(sums.excess_squared(), drawn.excess_squared(), blocks, chance)


@dataclass(frozen=True, slots=True)
class _Aggregated:
    """The noise floor and the excess of the aggregated CV."""

    noise_floor: float | None
    excess: Excess


def _aggregated(run: RunBlocks, drawn: Resampled, blocks: int, per_step: Excess) -> _Aggregated:
    tokens = StepSums.of(run.rows.sum(axis=0)[ALL_STEPS]).small_tokens
    small = run.small.sum(axis=0)
    if not tokens:
        reason = f"no step of {MAX_AGGREGATED_TOKENS} tokens or fewer"
        return _Aggregated(None, Excess(None, reason))
    drawn_tokens = StepSums.of(drawn.rows[:, ALL_STEPS]).small_tokens
    floor = floor_squared(small, tokens, run.top_k)
    if per_step.value is None:
        return _Aggregated(_root(floor), Excess(None, f"the steps show none: {per_step.reason}"))
    judged = excess.judged(
        excess.squared(small, tokens, run.top_k),
        excess.squared(drawn.small, drawn_tokens, run.top_k),
        blocks,
        excess.spread(float(floor), run.experts),
    )
    return _Aggregated(_root(floor), judged)


def _phases(
    run: RunBlocks, whole: Floats, drawn: Floats, blocks: Floats
) -> tuple[Phase | None, Phase | None]:
    """Prefill and decode: the steps with prompt tokens, and all others. `whole` [2 × WIDTH],
    `drawn` [resamples, 2 × WIDTH] and `blocks` [blocks, 2 × WIDTH]: rows as in Blocks."""
    counts = run.counts.sum(axis=0)
    prompt, drawn_prompt = whole[PROMPT_STEPS], drawn[:, PROMPT_STEPS]
    prompt_blocks = np.count_nonzero(StepSums.of(blocks[:, PROMPT_STEPS]).steps)
    others, drawn_others = whole[ALL_STEPS] - prompt, drawn[:, ALL_STEPS] - drawn_prompt
    return (
        _phase(run, prompt, drawn_prompt, run.prefill_counts, int(prompt_blocks)),
        _phase(run, others, drawn_others, counts - run.prefill_counts, len(blocks)),
    )


def _phase(run: RunBlocks, row: Floats, drawn: Floats, counts: Floats, blocks: int) -> Phase | None:
    sums = StepSums.of(row)
    if not sums.steps:
        return None
    drawn_sums = StepSums.of(drawn)
    excess = _excess(run, sums, drawn_sums, blocks)
    return Phase(
        steps=int(sums.steps),
        tokens=int(sums.tokens),
        per_step_cv=float(sums.cv / sums.layers),
        noise_floor=_noise_floor(sums),
        excess_cv=excess.value,
        excess_cv_reason=excess.reason,
        excess_cv_interval=excess.interval,
        excess_squared=excess.squared,
        excess_squared_error=excess.error,
        excess_squared_interval=excess.squared_interval,
        layer_cv=float(cv(counts).mean()),
        rank_imbalance=float(sums.rank_ratio / sums.layers) if run.ranks else None,
        busiest_rank=busiest.of(sums, drawn_sums, blocks, run),
    )


def measure_segment(log: GateLog, label: str) -> Imbalance:
    """One run's own steps, and how many were left out because they hold another run's tokens too.
    GateLogError if it has none of its own."""
    return measure_segments([log], label)


def measure_segments(parts: Sequence[GateLog], label: str) -> Imbalance:
    """As `measure_segment`, for a log that was read in several parts."""
    meter = Meter()
    for part in parts:
        if len(part.tokens):  # a read between two blocks of the log finds no step
            meter.add(part)
    return of_meter(meter, label)


def of_meter(meter: Meter, label: str, repeats: Repeats | None = None) -> Imbalance:
    """As `measure_segment`, for a log that has been summed up."""
    if label not in meter.runs:
        raise GateLogError(f"no step of {label} in the gate log")
    run = meter.runs[label]
    return measure_run(run, {SHARED: run.shared}, repeats=repeats)
