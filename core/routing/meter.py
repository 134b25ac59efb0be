"""One pass over a gate log → the sums of every run in it, part by part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from core.routing import steps, work
from core.routing.blocks import RunBlocks, StepSums
from core.routing.gatelog import GateLog
from core.routing.nodes import NodeSums
from core.routing.steps import StepFigures
from core.stats.arrays import Bools, Floats, Ints

MAX_AGGREGATED_TOKENS = 1000
BUSIEST = ("active", "tiles", "padded", "first_waves", "second_waves", "amount")
WARMUP = "warmup"  # the segment of warm-up requests: never measured


@dataclass(frozen=True, slots=True)
class _Columns:
    """Where the sums of one run stand among those that are taken of a part of the log."""

    blocks: slice
    large: slice | None  # by block, of steps of more than 1000 tokens; None if there are none
    prompt: slice | None  # all steps with prompt tokens, one column; None if there are none

    @classmethod
    def after(cls, place: int, blocks: int, *, large: bool, prompt: bool) -> _Columns:
        """From `place` on."""
        end = place + blocks
        larger = end + blocks if large else end
        return cls(
            slice(place, end),
            slice(end, larger) if large else None,
            slice(larger, larger + 1) if prompt else None,
        )

    @property
    def end(self) -> int:
        return int((self.prompt or self.large or self.blocks).stop)


@dataclass(frozen=True, slots=True)
class _Part:
    """The steps of one run in one part of the log."""

    run: RunBlocks
    steps: Ints  # their places in the part
    blocks: Ints  # the block that each goes into
    columns: _Columns

    @property
    def rows(self) -> slice:
        """The run's blocks that the steps go into."""
        return slice(int(self.blocks[0]), int(self.blocks[-1]) + 1)


@dataclass(frozen=True, slots=True)
class _Summed:
    """One part of the log with its figures, and the sums of its loads that `picks` chose."""

    log: GateLog
    figures: StepFigures
    table: Floats  # [steps, 2 × WIDTH]
    picks: Floats  # [steps, columns]: 1 where a step belongs to a column's sum
    sums: Floats  # [columns, layers, experts]


class Meter:
    """Sums up a log part by part; `runs` holds the sums by label."""

    def __init__(self) -> None:
        self.runs: dict[str, RunBlocks] = {}

    def add(self, log: GateLog, layer_tokens: Ints | None = None) -> StepFigures:
        """Sum up one part of a log; returns the figures of its steps. `layer_tokens` [steps,
        layers]: where layers saw different steps.

        A step that holds tokens of several runs counts for none of them, nor does a warm-up step.
        Requests without a label are the run "".
        """
        parts = self._parts(log)
        picks = _picks(parts, log)
        tokens = log.tokens if layer_tokens is None else layer_tokens
        figures, sums = steps.measure(
            log.loads, tokens, log.top_k, log.placement, picks, log.by_rank
        )
        seen = log.tokens * figures.layers if layer_tokens is None else layer_tokens.sum(axis=1)
        summed = _Summed(log, figures, _table(log, figures, seen), picks, sums)
        for part in parts:
            _add_part(part, summed)
        return figures

    def _parts(self, log: GateLog) -> list[_Part]:
        parts: list[_Part] = []
        for label, own in log.segments.items():
            if label == WARMUP or not own.any():
                continue
            run = self._run(label, log)
            run.shared += int(((own > 0) & (own < log.tokens)).sum())
            places = np.flatnonzero((own == log.tokens) & (own > 0))
            if len(places):
                blocks = run.next_blocks(len(places))
                columns = _Columns.after(
                    parts[-1].columns.end if parts else 0,
                    int(blocks[-1] - blocks[0]) + 1,
                    large=bool(_is_large(log)[places].any()),
                    prompt=bool(_has_prompt(log)[places].any()),
                )
                parts.append(_Part(run, places, blocks, columns))
        return parts

    def _run(self, label: str, log: GateLog) -> RunBlocks:
        if label not in self.runs:
            _, layers, experts = log.loads.shape
            self.runs[label] = RunBlocks(
                layers,
                experts,
                log.top_k,
                log.ranks,
                log.placed,
                log.layer_numbers,
                log.kernel,
            )
            if log.nodes > 1:
                self.runs[label].by_node = NodeSums(log.nodes)
        run = self.runs[label]
        if run.placed != log.placed:  # a map was logged too late for some steps
            run.ranks, run.placed = 0, "EPLB, but not every map of it was logged"
        return run


def _is_large(log: GateLog) -> Bools:
    return log.tokens > MAX_AGGREGATED_TOKENS


def _has_prompt(log: GateLog) -> Bools:
    return log.columns["prefill_tokens"] > 0


def _picks(parts: list[_Part], log: GateLog) -> Floats:
    """[steps, columns]: 1 where a step belongs to a column's sum."""
    picks = np.zeros((len(log.tokens), parts[-1].columns.end if parts else 0))
    for part in parts:
        columns, block = part.columns, part.blocks - part.blocks[0]
        picks[part.steps, columns.blocks.start + block] = 1
        if columns.large:
            large = _is_large(log)[part.steps]
            picks[part.steps[large], columns.large.start + block[large]] = 1
        if columns.prompt:
            picks[part.steps[_has_prompt(log)[part.steps]], columns.prompt] = 1
    return picks


def _table(log: GateLog, figures: StepFigures, seen: Floats | Ints) -> Floats:
    """[steps, 2 × WIDTH]; `seen` [steps]: tokens, summed over layers."""
    table = StepSums(
        steps=np.ones(len(log.tokens)),
        tokens=log.tokens.astype(np.float64),
        layers=figures.layers,
        cv=figures.cv,
        supported=figures.supported,
        cv_squared=figures.cv_squared,
        floor_squared=figures.floor_squared,
        floor_fourth=figures.floor_squared**2 / np.maximum(figures.supported, 1),
        floor_tokens=figures.floor_squared * (log.tokens - 1),
        expert_ratio=figures.expert_ratio,
        rank_ratio=figures.rank_ratio,
        rank_extra=figures.rank_extra,
        small_tokens=np.where(_is_large(log), 0.0, seen),
        **_work(log, figures),
    ).table()
    return np.hstack([table, np.where(_has_prompt(log)[:, None], table, 0.0)])


def _work(log: GateLog, figures: StepFigures) -> dict[str, Floats]:
    """What the busiest ranks do, Σ over layers, [steps]; and do under a fair router."""
    found = work.of_busiest(log)
    names = {"busiest_tokens": "tokens"} | {name: name for name in BUSIEST}
    summed = {
        column: np.zeros(len(log.tokens)) if values is None else values.sum(axis=1)
        for column, name in names.items()
        for values in (getattr(found, name),)
    }
    return summed | {"fair_amount": work.fair(log) * figures.layers}


def _add_part(part: _Part, of: _Summed) -> None:
    """Add the sums of one run's steps to its blocks."""
    run, log, columns, rows = part.run, of.log, part.columns, part.rows
    if not run.steps:
        run.first = log.loads[part.steps[0]].astype(np.float64)
    run.rows[rows] += of.picks[:, columns.blocks].T @ of.table
    counts = of.sums[columns.blocks]
    run.counts[rows] += counts
    run.small[rows] += counts.sum(axis=1)
    if columns.large:
        run.small[rows] -= of.sums[columns.large].sum(axis=1)
    if columns.prompt:
        run.prefill_counts += of.sums[columns.prompt][0]
    if run.ranks:
        run.rank_loads += of.figures.rank_loads[:, part.steps].sum(axis=1)
    known = log.columns["prefill_tokens"] + log.columns.get("decode_tokens", log.tokens)
    run.phased = run.phased and bool((known[part.steps] > 0).all())
    if run.constant:
        run.constant = bool((log.loads[part.steps] == run.first).all())
    run.recurrence.add(log.loads, part.steps[log.tokens[part.steps] > 1])
    if run.by_node and run.ranks:
        mask = np.zeros(len(log.tokens), bool)
        mask[part.steps] = True
        run.by_node.add(log.where(mask))
    run.one_token += int((log.tokens[part.steps] == 1).sum())
    run.violations += int(of.figures.violations[part.steps].sum())
    run.steps += len(part.steps)
