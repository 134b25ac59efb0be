"""Datasets whose predicted excess CV reaches a target: prompts chosen by what the model's router
does with them.

Whole queries come first. Where they do not reach the target, prompts of words join them: words that
load the same experts, the fewer different ones the further the target. Each prompt is a step of its
own, so the excess² of a dataset is the mean of its prompts'.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from core.errors import DatasetError
from core.prediction import exact
from core.prediction.exact import Routed, Tell
from core.prediction.stack import Stack
from core.stats.arrays import Floats, Ints
from core.workload.generator import Drawn, dataset_of, distinct
from core.workload.strategies import Draft, Queries

TOLERANCE = 0.01
"""Largest distance of a dataset's predicted excess CV from its target."""

WORDS = 20  # in a prompt of words
KINDS = (20, 8, 4, 2, 1)  # different words in it, from the most natural on
PER_KIND = 120  # prompts
NEAREST = 4  # times as many candidates as prompts are drawn from
_WORD = re.compile(r"[^\W\d_]{4,}")


@dataclass(frozen=True, slots=True)
class Candidates:
    """Prompts to choose from, whole queries first, with the excess² of each as a step."""

    texts: list[str]
    categories: list[str]
    excess_squared: Floats
    tiers: tuple[int, ...]  # how many candidates there are up to each degree of naturalness


def aim(
    stack: Stack,
    queries: Queries,
    targets: Sequence[float],
    *,
    seed: int = 0,
    queries_per_dataset: int = 30,
    tell: Tell | None = None,
) -> list[Drawn]:
    """One dataset for each target. DatasetError names the range that can be reached."""
    pools = distinct(queries)
    found = candidates(stack, pools, seed, tell)
    return [
        _dataset(found, tuple(pools), target, seed, index, queries_per_dataset)
        for index, target in enumerate(targets, 1)
    ]


def candidates(stack: Stack, pools: Queries, seed: int, tell: Tell | None = None) -> Candidates:
    """The queries, and prompts of words, with their excess²."""
    texts = [text for pool in pools.values() for text in pool]
    categories = [domain for domain, pool in pools.items() for _ in pool]
    routed = exact.route(stack, [stack.tokens(text) for text in texts], None, tell)
    listed = _word_prompts(_word_loads(stack, texts, routed), random.Random(f"{seed}:words"))
    words = [text for prompts in listed for text in prompts]
    known = [routed.forecast().excess_squared()]
    if words:
        also = exact.route(stack, [stack.tokens(text) for text in words], None, tell)
        known.append(also.forecast().excess_squared())
    return Candidates(
        texts + words,
        categories + ["words"] * len(words),
        np.concatenate(known).mean(axis=1),
        tuple(len(texts) + PER_KIND * place for place in range(len(KINDS) + 1))
        if words
        else (len(texts),),
    )


def _word_loads(stack: Stack, texts: Sequence[str], routed: Routed) -> dict[str, Floats]:
    """What each word of the queries adds to an even load, per token [layers × experts]; the mean
    over the places where it stands."""
    sums: dict[str, list[Floats]] = {}
    loads = [routed.of_tokens(place) for place in range(len(texts))]
    for text, load in zip(texts, loads, strict=True):
        for found in _WORD.finditer(text):
            first = len(stack.tokens(text[: found.start()]))
            own = load[first : len(stack.tokens(text[: found.end()]))]
            if len(own):
                sums.setdefault(found.group().lower(), []).append(own.mean(axis=0).ravel())
    return {word: np.mean(parts, axis=0) for word, parts in sums.items()}


def _word_prompts(loads: dict[str, Floats], rng: random.Random) -> list[list[str]]:
    """PER_KIND prompts for each of KINDS; each starts from one word, and takes those whose loads
    are most like it, then like what was taken. Nothing where there are too few words."""
    words = sorted(loads)
    if len(words) < 2 * WORDS:
        return []
    matrix = np.array([loads[word] for word in words])
    matrix -= matrix.mean(axis=0)
    return [[_word_prompt(words, matrix, kinds, rng) for _ in range(PER_KIND)] for kinds in KINDS]


def _word_prompt(words: list[str], loads: Floats, kinds: int, rng: random.Random) -> str:
    direction = loads[rng.randrange(len(words))]
    for _ in range(2):
        nearest = np.argsort(-(loads @ direction), kind="stable")[:kinds]
        direction = loads[nearest].mean(axis=0)
    taken = [words[place] for place in nearest]
    rng.shuffle(taken)
    return " ".join((taken * WORDS)[:WORDS])


def _dataset(
    of: Candidates, domains: tuple[str, ...], target: float, seed: int, index: int, size: int
) -> Drawn:
    chosen = _chosen(of, target, size, random.Random(f"{seed}:{target}"))
    reached = float(max(of.excess_squared[chosen].mean(), 0.0) ** 0.5)
    if abs(reached - target) > TOLERANCE:
        ordered = np.sort(of.excess_squared)
        low, high = (
            float(max(part.mean(), 0.0) ** 0.5) for part in (ordered[:size], ordered[-size:])
        )
        raise DatasetError(
            f"no {size} prompts of these queries have an excess CV within {TOLERANCE} of {target}:"
            f" they reach {low:.2f} to {high:.2f}"
        )
    entries = tuple((of.texts[place], of.categories[place]) for place in chosen)
    return dataset_of(index, Draft("aimed", domains, entries), seed, reached)


def _chosen(of: Candidates, target: float, size: int, rng: random.Random) -> list[int]:
    """Candidates whose excess² has the target's square as its mean: drawn from those nearest to it,
    of the most natural that reach it, then one is exchanged at a time."""
    room = next(
        (n for n in of.tiers if _reaches(of.excess_squared[:n], target, size)), of.tiers[-1]
    )
    own, wanted = of.excess_squared[:room], target * target
    if room < size:
        raise DatasetError(f"{size} different queries are needed, there are {room}; add queries")
    near = np.argsort(abs(own - wanted), kind="stable")[: NEAREST * size]
    chosen = np.array(rng.sample(near.tolist(), size))
    for _ in range(size):
        if abs(float(own[chosen].mean()) - wanted) < TOLERANCE * target:
            break
        chosen = _exchanged(own, chosen, wanted)
    return list(chosen.tolist())


def _reaches(excess_squared: Floats, target: float, size: int) -> bool:
    return bool(np.sort(excess_squared)[-size:].mean() >= target * target)


def _exchanged(own: Floats, chosen: Ints, wanted: float) -> Ints:
    """With the one exchange that brings the mean nearest to `wanted`."""
    others = np.setdiff1d(np.arange(len(own)), chosen)
    missing = wanted * len(chosen) - own[chosen].sum()
    off = abs(missing - (own[others][None, :] - own[chosen][:, None]))
    out, taken = np.unravel_index(int(off.argmin()), off.shape)
    found = chosen.copy()
    found[out] = others[taken]
    return found
