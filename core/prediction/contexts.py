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

    def count(self, prompts: Sequence[Sequence[int]]) -> tuple[list[Counts], Floats]:
        """Counts by length, and the tokens' own prior variance [prompts, lengths]: Σ over all
        contexts, seen before or not, of the squared counts."""
        from scipy import sparse

        counts, squares = [], np.zeros((len(prompts), len(LENGTHS)))
        for place, (length, columns) in enumerate(zip(LENGTHS, self.columns, strict=True)):
            rows, cols = [], []
            for row, prompt in enumerate(prompts):
                own = _contexts(prompt, length)
                _, times = np.unique(np.array(own), axis=0, return_counts=True)
                squares[row, place] = float((times * times).sum())
                known = [columns[context] for context in own if context in columns]
                rows += [row] * len(known)
                cols += known
            shape = (len(prompts), len(columns))
            counts.append(sparse.csr_array((np.ones(len(rows)), (rows, cols)), shape=shape))
        return counts, squares


def _contexts(prompt: Sequence[int], length: int) -> list[tuple[int, ...]]:
    """One a token, padded with -1 before the first."""
    padded = (*(-1 for _ in range(length - 1)), *prompt)
    return [padded[place : place + length] for place in range(len(prompt))]
