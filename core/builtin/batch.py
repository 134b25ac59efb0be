"""A ragged batch: the tokens that one forward pass processes, and their sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from core.builtin.weights import Floats, Ints


@dataclass(frozen=True, slots=True)
class Span:
    """The next tokens of one sequence, from position `start`; the earlier ones are in the cache, in
    `slot`."""

    slot: int
    start: int
    tokens: Sequence[int]
    wants_logits: bool


@dataclass(frozen=True, slots=True)
class Prefill:
    """Rows [row, stop_row) of the batch: several tokens of one sequence."""

    slot: int
    start: int
    row: int
    stop_row: int


@dataclass(frozen=True, slots=True)
class DecodeRun:
    """One-token spans in adjacent slots, so that their cache is a view and not a copy."""

    rows: Ints  # [n]
    slots: slice
    length: int  # of the longest, this step's token included
    bias: Floats  # [n, 1, 1, length]: 0 where a key exists, -inf past the sequence's end


@dataclass(frozen=True, slots=True)
class Batch:
    """Spans laid end to end."""

    tokens: Ints  # [n]
    positions: Ints  # [n]
    slots: Ints  # [n]
    last: Ints  # [spans that want logits]: the row of each one's last token
    prefills: tuple[Prefill, ...]
    decodes: tuple[DecodeRun, ...]

    @classmethod
    def of(cls, spans: Sequence[Span]) -> Batch:
        """The batch of these spans; logits come back in their order."""
        sizes = np.array([len(s.tokens) for s in spans])
        stops = np.cumsum(sizes)
        firsts = stops - sizes
        starts = np.array([s.start for s in spans])
        slots = np.array([s.slot for s in spans])
        rows = list(accumulate((len(s.tokens) for s in spans), initial=0))
        return cls(
            tokens=np.array([token for s in spans for token in s.tokens]),
            positions=np.arange(stops[-1]) + np.repeat(starts - firsts, sizes),
            slots=np.repeat(slots, sizes),
            last=stops[[s.wants_logits for s in spans]] - 1,
            prefills=tuple(
                Prefill(s.slot, s.start, row, row + len(s.tokens))
                for s, row in zip(spans, rows, strict=False)
                if len(s.tokens) > 1
            ),
            decodes=decode_runs(firsts[sizes == 1], slots[sizes == 1], starts[sizes == 1]),
        )


def decode_runs(rows: Ints, slots: Ints, positions: Ints) -> tuple[DecodeRun, ...]:
    """One-token rows, split at the gaps between their sorted slots."""
    order = np.argsort(slots)
    gaps = np.flatnonzero(np.diff(slots[order]) != 1) + 1
    return tuple(
        _run(rows[part], slots[part], positions[part])
        for part in np.split(order, gaps)
        if len(part)
    )


def _run(rows: Ints, slots: Ints, positions: Ints) -> DecodeRun:
    length = int(positions.max()) + 1
    past = np.arange(length) > positions[:, None]
    bias = np.where(past, np.float32(-np.inf), np.float32(0))[:, None, None, :]
    return DecodeRun(rows, slice(int(slots[0]), int(slots[-1]) + 1), length, bias)
