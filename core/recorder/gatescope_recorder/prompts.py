"""How often the first prompts have a token in common, by which random tokens are recognised: text
repeats its frequent tokens, tokens drawn evenly from a vocabulary of V meet with a chance of 1/V.

This module runs inside vLLM's workers: standard library only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

MOST, LENGTH = 64, 512  # prompts, and tokens of each


class Prompts:
    """`alike` of `pairs` pairs of tokens of two prompts are of one type."""

    def __init__(self) -> None:
        self.count = self.alike = self.pairs = 0
        self._seen: Counter[int] = Counter()

    def add(self, prompt: Sequence[int] | None) -> None:
        """A prompt's token ids; None where it has none."""
        if not prompt or self.count == MOST:
            return
        own = Counter(prompt[:LENGTH])
        self.alike += sum(n * self._seen[token] for token, n in own.items())
        self.pairs += own.total() * self._seen.total()
        self.count += 1
        self._seen += own
        if self.count == MOST:
            self._seen.clear()

    def noted(self, vocabulary: int) -> dict[str, int]:
        """For the file beside the log."""
        return {
            "count": self.count,
            "alike": self.alike,
            "pairs": self.pairs,
            "vocabulary": vocabulary,
        }
