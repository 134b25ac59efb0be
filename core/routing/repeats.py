"""How often prompts repeat a token: tokens of one type may all route alike, so chance makes more of
a prompt step's imbalance than its number of tokens says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from msgspec import Struct


class Repeats(Struct, frozen=True):
    """A token of a step of n prompt tokens has (n - 1) rate + own others of its type, so the step
    counts as n / (1 + own + (n - 1) rate) independent ones: 1/Σf², f the share of each type.

    `rate`: the probability that tokens of two prompts are of one type. `own`: how many more a
    token's own prompt has of its type than that rate says.
    """

    rate: float
    own: float

    def widening(self, tokens: float) -> float:
        """By how much the squared noise floor of `tokens` prompt tokens is too small."""
        return (1 + self.own + max(tokens - 1, 0.0) * self.rate) / (1 - self.rate)


def of(prompts: Sequence[Sequence[int]]) -> Repeats | None:
    """From the token ids of each prompt; None if there are fewer than two types of token."""
    by_prompt = [Counter(prompt) for prompt in prompts if prompt]
    tokens = sum(by_prompt, Counter[int]())
    total = tokens.total()
    if len(tokens) < 2:
        return None
    inside = sum(c.total() ** 2 for c in by_prompt)
    alike_inside = sum(n * n for c in by_prompt for n in c.values())
    if len(by_prompt) == 1:
        return Repeats((alike_inside - total) / (inside - total), 0.0)
    rate = (sum(n * n for n in tokens.values()) - alike_inside) / (total**2 - inside)
    own = (alike_inside - total) / total - rate * (inside / total - 1)
    return Repeats(rate, max(own, 0.0))
