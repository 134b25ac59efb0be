"""How often prompts repeat a token: tokens of one type may all route alike, so chance makes more of
a prompt step's imbalance than its number of tokens says."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from core.files import NOT_JSON

RANDOM = 3  # × as many tokens in common as drawn evenly: text has 10 (bytes) to 1000 (words) times
ENOUGH = 10  # pairs in common, drawn evenly: fewer do not tell


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


class _Seen(Struct):
    """What the recorder notes of the first prompts (`gatescope_recorder.prompts`)."""

    alike: int = 0
    pairs: int = 0
    vocabulary: int = 0


class _Side(Struct):
    prompts: _Seen = msgspec.field(default_factory=_Seen)


def random_prompts(logs: Path) -> str:
    """That the first prompts are random tokens, as the recorder saw them beside its logs; empty if
    they are not, or are too few to tell."""
    found = []
    for side in logs.glob("*.gatelog.json"):
        with contextlib.suppress(OSError, msgspec.ValidationError, *NOT_JSON):
            found.append(msgspec.json.decode(side.read_bytes(), type=_Side).prompts)
    vocabulary = max((seen.vocabulary for seen in found), default=0)
    evenly = sum(seen.pairs for seen in found) / max(vocabulary, 1)
    if not vocabulary or evenly < ENOUGH or sum(seen.alike for seen in found) > RANDOM * evenly:
        return ""
    return f"the prompts are random tokens, evenly drawn from {vocabulary}"
