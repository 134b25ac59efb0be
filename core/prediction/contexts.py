"""How often each context stands in a prompt: a token with up to two tokens before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.stats.arrays import Floats

LENGTHS = (1, 2, 3)

Counts = Any  # scipy.sparse.csr_array [prompts, contexts], imported where it is made


@dataclass(frozen=True, slots=True)
class Contexts:
    """The contexts seen in some prompts, by length: their columns."""

    columns: tuple[dict[tuple[int, ...], int], ...]

    @classmethod
    def seen_in(cls, prompts: Sequence[Sequence[int]]) -> Contexts:
        found = []
        for length in LENGTHS:
            seen = dict.fromkeys(c for prompt in prompts for c in _contexts(prompt, length))
            found.append({context: column for column, context in enumerate(seen)})
        return cls(tuple(found))

    def count(self, prompts: Sequence[Sequence[int]]) -> list[Counts]:
        """Counts by length; contexts that were not seen before are left out."""
        from scipy import sparse

        counts = []
        for length, columns in zip(LENGTHS, self.columns, strict=True):
            places = [
                (row, columns[context])
                for row, prompt in enumerate(prompts)
                for context in _contexts(prompt, length)
                if context in columns
            ]
            rows, cols = np.array(places, np.int64).reshape(-1, 2).T
            shape = (len(prompts), len(columns))
            counts.append(sparse.csr_array((np.ones(len(rows)), (rows, cols)), shape=shape))
        return counts


def grams(counts: Sequence[Counts], others: Sequence[Counts]) -> list[Floats]:
    """By length [prompts, others]: Σ over contexts of the product of their counts."""
    return [np.asarray((a @ b.T).toarray()) for a, b in zip(counts, others, strict=True)]


def _contexts(prompt: Sequence[int], length: int) -> list[tuple[int, ...]]:
    """One a token, padded with -1 before the first."""
    padded = (*(-1 for _ in range(length - 1)), *prompt)
    return [padded[place : place + length] for place in range(len(prompt))]
