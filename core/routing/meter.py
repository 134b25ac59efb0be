"""One pass over a gate log → the imbalance of every run in it, in bounded memory.

A run's steps are summed into at most 32 blocks of neighbouring steps, whatever the log's length:
when they are full, neighbours are joined. The blocks are what the 95 % intervals resample.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from core.routing import steps
from core.routing.gatelog import GateLog
from core.routing.steps import StepFigures
from core.stats import bootstrap
from core.stats.arrays import Bools, Floats, Ints

MAX_BLOCKS = 32
FEW_BLOCKS = 8  # are not joined for the likeness of neighbours
ALIKE = 0.05  # correlation of neighbours from which on they are joined
MAX_AGGREGATED_TOKENS = 1000
WARMUP = "warmup"  # the segment of warm-up requests: never measured

# A row of sums over steps, in this order; the second half of a row is the same over steps with
# prompt tokens.
SUMS = (
    *(
        "steps",
        "tokens",
        "layers",
        "cv",
        "supported",
        "cv_squared",
        "floor_squared",
        "expert_ratio",
        "rank_ratio",
    ),
    *("rank_extra", "small_tokens"),
)


@dataclass(slots=True)
class RunBlocks:
    """The steps of one run, summed by block. `counts` [blocks, layers, experts], `rows` [blocks, 2
    × sums]."""

    layers: int
    experts: int
    top_k: float
    ranks: int = 0  # EP ranks, 0 where their loads are not known
    placed: str = ""  # how experts are placed on them
    length: int = 1  # steps of one block
    steps: int = 0
    shared: int = 0  # steps left out because another run's tokens are in them
    one_token: int = 0
    violations: int = 0
    constant: bool = True  # every step so far has the first one's loads
    rows: Floats = field(init=False)
    counts: Floats = field(init=False)
    small: Floats = field(
        init=False
    )  # [blocks, experts]: over layers and steps of at most 1000 tokens
    prefill_counts: Floats = field(init=False)  # [layers, experts]
    rank_loads: Floats = field(init=False)  # [ranks]
    first: Floats | None = None

    def __post_init__(self) -> None:
        self.rows = np.zeros((MAX_BLOCKS, 2 * len(SUMS)))
        self.counts = np.zeros((MAX_BLOCKS, self.layers, self.experts))
        self.small = np.zeros((MAX_BLOCKS, self.experts))
        self.prefill_counts = np.zeros((self.layers, self.experts))
        self.rank_loads = np.zeros(self.ranks)

    @property
    def used(self) -> int:
        """Blocks that hold steps."""
        return -(-self.steps // self.length)

    def next_blocks(self, count: int) -> Ints:
        """The blocks that the next `count` steps fall into; room is made for them."""
        while self.steps + count > self.length * MAX_BLOCKS:
            self._join_neighbours()
        return (self.steps + np.arange(count)) // self.length

    def grouped(self) -> tuple[Floats, Floats, Floats]:
        """Rows, counts and small counts in the blocks that intervals draw.

        They have at least n^(1/3) steps, and as many as it takes until neighbours no longer go
        together: decode steps share their requests, so that a few long blocks know more of the
        spread than many short ones.
        """
        rows, counts, small = (part[: self.used] for part in (self.rows, self.counts, self.small))
        length = float(self.length)
        while len(rows) > 2 and (
            length < bootstrap.block_length(self.steps)
            or (len(rows) > FEW_BLOCKS and _alike(rows, counts) > ALIKE)
        ):
            pairs = np.arange(0, len(rows), 2)
            rows, counts, small = (
                np.add.reduceat(part, pairs, axis=0) for part in (rows, counts, small)
            )
            length *= 2
        return rows, counts, small

    def _join_neighbours(self) -> None:
        half = MAX_BLOCKS // 2
        for part in (self.rows, self.counts, self.small):
            part[:half] = part[0::2] + part[1::2]
            part[half:] = 0
        self.length *= 2


def _alike(rows: Floats, counts: Floats) -> float:
    """How much neighbouring blocks go together: in CV, in CV² over the floor, or in how they favour
    what all favour."""
    of = {name: rows[:, place] for place, name in enumerate(SUMS)}
    whole = counts.sum(axis=0)
    favour = whole - whole.mean(axis=-1, keepdims=True)
    return max(
        bootstrap.lag_one(of["cv"] / np.maximum(of["layers"], 1)),
        bootstrap.lag_one(
            (of["cv_squared"] - of["floor_squared"]) / np.maximum(of["supported"], 1)
        ),
        bootstrap.lag_one(np.tensordot(counts, favour, 2) / np.maximum(counts.sum(axis=(1, 2)), 1)),
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """A run's steps in one part of the log: `steps` their places, `blocks` where each goes."""

    run: RunBlocks
    steps: Ints
    blocks: Ints


class Meter:
    """Takes a log part by part. `runs` holds what was summed, by label."""

    def __init__(self) -> None:
        self.runs: dict[str, RunBlocks] = {}

    def add(self, log: GateLog, layer_tokens: Ints | None = None) -> StepFigures:
        """Sum up one part; the figures of its steps. `layer_tokens` [steps, layers] where layers
        saw different steps.

        A step whose tokens belong to several runs is nobody's; warm-up steps are nobody's too.
        """
        parts = list(self._parts(log))
        columns, small = _columns(parts, log)
        tokens = log.tokens if layer_tokens is None else layer_tokens
        figures, sums = steps.measure(
            log.loads, tokens, log.top_k, log.placement, columns, log.by_rank
        )
        table = _table(
            log, figures, log.tokens if layer_tokens is None else layer_tokens.sum(axis=1)
        )
        summed = _Summed(log, figures, table, columns, sums, small)
        place = 0
        for part in parts:
            place = _add_part(part, summed, place)
        return figures

    def _parts(self, log: GateLog) -> Iterator[_Part]:
        for label, own in log.segments.items():
            if label in ("", WARMUP) or not own.any():
                continue
            _, layers, experts = log.loads.shape
            if label not in self.runs:
                self.runs[label] = RunBlocks(layers, experts, log.top_k, log.ranks, log.placed)
            run = self.runs[label]
            if run.placed != log.placed:  # a map was logged too late for some steps
                run.ranks, run.placed = 0, "EPLB, but not every map of it was logged"
            run.shared += int(((own > 0) & (own < log.tokens)).sum())
            places = np.flatnonzero((own == log.tokens) & (own > 0))
            if len(places):
                yield _Part(run, places, run.next_blocks(len(places)))


def _columns(parts: list[_Part], log: GateLog) -> tuple[Floats, Bools]:
    """[steps, sums]: for each part its blocks, the same over large steps where there are any, its
    prompt steps."""
    small = log.tokens <= MAX_AGGREGATED_TOKENS
    prefill = log.columns["prefill_tokens"] > 0
    columns = []
    for part in parts:
        first, last = part.blocks[0], part.blocks[-1]
        cells = np.zeros((len(small), last - first + 1))
        cells[part.steps, part.blocks - first] = 1
        columns.append(cells)
        if not small[part.steps].all():
            columns.append(np.where(small[:, None], 0.0, cells))
        if prefill[part.steps].any():
            columns.append((cells.any(axis=1) & prefill)[:, None].astype(np.float64))
    return np.hstack(columns) if columns else np.zeros((len(small), 0)), small


def _table(log: GateLog, figures: StepFigures, layer_tokens: Ints) -> Floats:
    """[steps, 2 × sums]."""
    small = log.tokens <= MAX_AGGREGATED_TOKENS
    whole = layer_tokens if layer_tokens is not log.tokens else log.tokens * figures.layers
    table = np.column_stack(
        [
            *(np.ones(len(log.tokens)), log.tokens, figures.layers, figures.cv, figures.supported),
            *(figures.cv_squared, figures.floor_squared, figures.expert_ratio, figures.rank_ratio),
            *(figures.rank_extra, np.where(small, whole, 0)),
        ]
    )
    return np.hstack([table, np.where((log.columns["prefill_tokens"] > 0)[:, None], table, 0.0)])


@dataclass(frozen=True, slots=True)
class _Summed:
    """One part of the log with its figures, and the sums of its loads that `columns` picked."""

    log: GateLog
    figures: StepFigures
    table: Floats
    columns: Floats
    sums: Floats
    small: Bools


def _add_part(part: _Part, of: _Summed, place: int) -> int:
    """Put one run's sums, which start at `place`, where they belong; the place after them."""
    run, log, first, last = part.run, of.log, int(part.blocks[0]), int(part.blocks[-1]) + 1
    width = last - first
    if not run.steps:
        run.first = log.loads[part.steps[0]].astype(np.float64)
    run.rows[first:last] += of.columns[:, place : place + width].T @ of.table
    counts = of.sums[place : place + width]
    run.counts[first:last] += counts
    run.small[first:last] += counts.sum(axis=1)
    place += width
    if not of.small[part.steps].all():
        run.small[first:last] -= of.sums[place : place + width].sum(axis=1)
        place += width
    if (log.columns["prefill_tokens"][part.steps] > 0).any():
        run.prefill_counts += of.sums[place]
        place += 1
    if run.ranks:
        run.rank_loads += of.figures.rank_loads[:, part.steps].sum(axis=1)
    if run.constant:
        run.constant = bool((log.loads[part.steps] == run.first).all())
    run.one_token += int((log.tokens[part.steps] == 1).sum())
    run.violations += int(of.figures.violations[part.steps].sum())
    run.steps += len(part.steps)
    return place
