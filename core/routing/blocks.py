"""The steps of one run, summed into at most 32 blocks of neighbouring steps.

When all blocks are full, neighbours are joined, so the sums need the same memory however long the
run is. The blocks are what the 95 % intervals resample.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np

from core.recorder.gatescope_recorder.kernel import Kernel
from core.routing.nodes import NodeSums
from core.routing.recurrence import Recurrence
from core.routing.repeats import Repeats
from core.stats import bootstrap
from core.stats.arrays import Floats, Ints

MAX_BLOCKS = 32
FEW_BLOCKS = 8  # this few are not joined, even if neighbours are correlated
ALIKE = 0.05  # correlation of neighbours above which they are joined


@dataclass(frozen=True, slots=True)
class StepSums:
    """Figures of steps (`StepFigures`), summed over steps; each field is one column of a table."""

    steps: Floats
    tokens: Floats
    layers: Floats
    cv: Floats
    supported: Floats
    cv_squared: Floats
    floor_squared: Floats
    floor_fourth: Floats  # floor_squared² / supported: the spread that chance gives CV²
    floor_tokens: Floats  # floor_squared × (tokens - 1)
    expert_ratio: Floats
    rank_ratio: Floats
    rank_extra: Floats
    small_tokens: Floats  # × layers, in steps of at most 1000 tokens
    # of the busiest rank of each layer (core.routing.work); 0 where it is not known
    busiest_tokens: Floats
    active: Floats
    tiles: Floats
    padded: Floats
    first_waves: Floats
    second_waves: Floats
    amount: Floats
    fair_amount: Floats

    @classmethod
    def of(cls, table: Floats) -> StepSums:
        """The columns of `table` [..., columns] by name."""
        return cls(*(table[..., place] for place in range(table.shape[-1])))

    def table(self) -> Floats:
        """The reverse of `of`, for columns [n]."""
        return np.column_stack([getattr(self, column.name) for column in fields(self)])

    def excess_squared(self) -> Floats:
        """Mean CV² - mean floor²; nan where no layer saw two tokens."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.cv_squared / self.supported - self.floor_squared / self.supported


WIDTH = len(fields(StepSums))
COLUMN = {column.name: place for place, column in enumerate(fields(StepSums))}
ALL_STEPS, PROMPT_STEPS = slice(0, WIDTH), slice(WIDTH, 2 * WIDTH)  # the halves of a row


@dataclass(frozen=True, slots=True)
class Blocks:
    """Sums over blocks of neighbouring steps."""

    rows: Floats  # [blocks, 2 × WIDTH]: StepSums of all steps, then of those with prompt tokens
    counts: Floats  # [blocks, layers, experts]
    small: Floats  # [blocks, experts]: over layers, and steps of at most 1000 tokens

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(slots=True)
class RunBlocks:
    """The steps of one run, summed by block; the arrays have room for MAX_BLOCKS."""

    layers: int
    experts: int
    top_k: float
    ranks: int = 0  # EP ranks; 0 if their loads are not known
    placed: str = ""  # how experts are placed on them
    layer_numbers: tuple[int, ...] = ()  # the model's own; empty: counted from 0
    kernel: Kernel | None = None  # None: the log does not say
    length: int = 1  # steps of one block
    steps: int = 0
    shared: int = 0  # steps left out because they hold tokens of another run too
    one_token: int = 0
    violations: int = 0
    phased: bool = True  # whether the log tells prompt tokens from others
    constant: bool = True  # every step so far has the loads of the first one
    rows: Floats = field(init=False)  # as in Blocks
    counts: Floats = field(init=False)
    small: Floats = field(init=False)
    prefill_counts: Floats = field(init=False)  # [layers, experts]
    rank_loads: Floats = field(init=False)  # [ranks]
    first: Floats | None = None  # loads of the first step
    recurrence: Recurrence = field(init=False)
    by_node: NodeSums | None = None  # of a server on several nodes

    def __post_init__(self) -> None:
        self.rows = np.zeros((MAX_BLOCKS, 2 * WIDTH))
        self.counts = np.zeros((MAX_BLOCKS, self.layers, self.experts))
        self.small = np.zeros((MAX_BLOCKS, self.experts))
        self.prefill_counts = np.zeros((self.layers, self.experts))
        self.rank_loads = np.zeros(self.ranks)
        self.recurrence = Recurrence(self.layers, self.experts)

    @property
    def is_moved(self) -> bool:
        """Whether EPLB placed the experts."""
        return self.placed.startswith("EPLB")

    @property
    def used(self) -> int:
        """Blocks that hold steps."""
        return -(-self.steps // self.length)

    def next_blocks(self, count: int) -> Ints:
        """The blocks that the next `count` steps fall into; neighbours are joined to make room."""
        while self.steps + count > self.length * MAX_BLOCKS:
            self._join_neighbours()
        return (self.steps + np.arange(count)) // self.length

    def grouped(self, repeats: Repeats | None = None) -> Blocks:
        """The sums in the blocks that intervals draw; noise floors as prompts' tokens repeat.

        Blocks have at least n^(1/3) steps, and as many as it takes until neighbours are no longer
        correlated: decode steps share their requests, so a few long blocks show the true spread,
        which many short ones understate.
        """
        rows = widened(self.rows[: self.used], repeats)
        blocks = Blocks(rows, self.counts[: self.used], self.small[: self.used])
        length = float(self.length)
        while len(blocks) > 2 and (
            length < bootstrap.block_length(self.steps)
            or (len(blocks) > FEW_BLOCKS and _alike(blocks) > ALIKE)
        ):
            blocks = _in_pairs(blocks)
            length *= 2
        return blocks

    def _join_neighbours(self) -> None:
        half = MAX_BLOCKS // 2
        for part in (self.rows, self.counts, self.small):
            part[:half] = part[0::2] + part[1::2]
            part[half:] = 0
        self.length *= 2


def widened(rows: Floats, repeats: Repeats | None) -> Floats:
    """`rows` [..., 2 × WIDTH] with the noise floor of steps with prompt tokens as these repeat."""
    if repeats is None:
        return rows
    wide = rows.copy()
    squared, fourth, tokens = (
        WIDTH + COLUMN[name] for name in ("floor_squared", "floor_fourth", "floor_tokens")
    )
    floor = rows[..., squared]
    wider = (floor * (1 + repeats.own) + rows[..., tokens] * repeats.rate) / (1 - repeats.rate)
    factor = np.divide(wider, floor, out=np.ones_like(floor), where=floor > 0)
    for place, value in ((squared, wider), (fourth, rows[..., fourth] * factor**2)):
        wide[..., place - WIDTH] += value - rows[..., place]
        wide[..., place] = value
    return wide


def _in_pairs(blocks: Blocks) -> Blocks:
    pairs = np.arange(0, len(blocks), 2)
    parts = (blocks.rows, blocks.counts, blocks.small)
    return Blocks(*(np.add.reduceat(part, pairs, axis=0) for part in parts))


def _alike(blocks: Blocks) -> float:
    """The highest correlation of neighbouring blocks: in CV, in CV² over the floor, or in how much
    they favour the experts that the whole run favours."""
    of, counts = StepSums.of(blocks.rows[:, ALL_STEPS]), blocks.counts
    whole = counts.sum(axis=0)
    favour = whole - whole.mean(axis=-1, keepdims=True)
    return max(
        bootstrap.lag_one(of.cv / np.maximum(of.layers, 1)),
        bootstrap.lag_one((of.cv_squared - of.floor_squared) / np.maximum(of.supported, 1)),
        bootstrap.lag_one(np.tensordot(counts, favour, 2) / np.maximum(counts.sum(axis=(1, 2)), 1)),
    )
