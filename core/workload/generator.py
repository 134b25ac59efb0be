"""Draws prompt datasets that skew a Mixture-of-Experts router by different amounts.

`generate` uses the strategies in turn; `mix_to_target` searches for a given imbalance score;
core/workload/folder.py writes the datasets. `seed` decides every draw: the same queries and seed
give the same bytes.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from core.errors import DatasetError, FileError
from core.workload.dataset import Prompt
from core.workload.predictor import predict
from core.workload.strategies import (
    REPEATED_WORDS,
    Draft,
    Queries,
    repeated,
    spread,
    strategies,
)

TOLERANCE = 0.01
"""Largest distance of a dataset from its target score."""

_FILLERS = ("water", "energy", "music", "light", "market")  # one Mixtral token each
_KEYWORDS = 8  # words in a prompt of keywords
_DRAWS = 8  # draws for a target before the search gives up
_KEYWORD = re.compile(r"[^\W\d_]{4,}")


@dataclass(frozen=True, slots=True)
class Drawn:
    """Prompts drawn by one strategy, and their predicted imbalance score in [0, 1]."""

    index: int
    strategy: str
    domains: tuple[str, ...]
    seed: int
    score: float
    prompts: tuple[Prompt, ...]
    excess_cv: float | None = None  # predicted, where the dataset was aimed at it

    @property
    def file(self) -> str:
        """Name of the dataset's file."""
        return f"{self.index:03d}_{self.score:.4f}.jsonl"

    @property
    def texts(self) -> list[str]:
        """The prompts' texts, in file order."""
        return [prompt.text for prompt in self.prompts]


def load_queries(file: Path) -> dict[str, list[str]]:
    """Read {domain: [query, …]} from a JSON file. FileError if it holds anything else."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FileError(f"{file}: not a JSON file in UTF-8: {error}") from None
    if not isinstance(found, dict) or not all(
        _is_list_of_text(queries) for queries in found.values()
    ):
        raise FileError(f"{file}: expected one object of the form {{domain: [query, …]}}")
    return found


def _is_list_of_text(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def generate(
    queries: Queries, *, count: int = 50, seed: int = 0, queries_per_dataset: int = 30
) -> list[Drawn]:
    """Draw `count` datasets: the fixed strategies in order, then random combinations of domains.

    Each dataset has its own random generator, so a smaller `count` gives the first datasets of a
    larger one. DatasetError if there are too few queries.
    """
    if count < 1:
        raise ValueError(f"count is {count}: expected 1 or more datasets")
    pools = distinct(queries)
    _check_size(queries_per_dataset)
    return [
        dataset_of(
            index, strategy(pools, random.Random(f"{seed}:{index}"), queries_per_dataset), seed
        )
        for index, strategy in enumerate(islice(strategies(tuple(pools), seed), count), 1)
    ]


def mix_to_target(
    queries: Queries, target: float, *, seed: int = 0, index: int = 1, queries_per_dataset: int = 30
) -> Drawn:
    """Draw a dataset whose predicted score is within TOLERANCE of `target`.

    The search bisects a path of mixtures: from prompts of keywords that occur once each, through
    whole queries, to one repeated word. Two things limit the low end: the vocabulary (words share
    sub-word tokens, and the ten most frequent tokens always have their share) and the similarity
    term, which is 0.05 for unrelated texts. The Gini coefficient limits the high end: it needs some
    rare tokens beside the repeated one. With 30 prompts of the shipped queries the range is about
    0.11 to 0.97. DatasetError names the range where `target` is outside it.
    """
    pools = distinct(queries)
    _check_size(queries_per_dataset)
    reached: list[float] = []
    for draw in range(_DRAWS):
        mixture = _Mixture.draw(pools, random.Random(f"{seed}:target:{draw}"), queries_per_dataset)
        draft, score = _closest(mixture, target)
        if abs(score - target) <= TOLERANCE:
            return dataset_of(index, draft, seed)
        reached += [_score(mixture.at(0)), _score(mixture.at(mixture.end)), score]
    raise DatasetError(
        f"no mixture of {queries_per_dataset} prompts scores within {TOLERANCE} of {target}: "
        f"these queries reach {min(reached):.4f} to {max(reached):.4f} with seed {seed}"
    )


def dataset_of(index: int, draft: Draft, seed: int, excess_cv: float | None = None) -> Drawn:
    """What a strategy drew, scored."""
    prompts = tuple(
        Prompt(f"{draft.strategy}_{i}", text, category)
        for i, (text, category) in enumerate(draft.entries)
    )
    return Drawn(index, draft.strategy, draft.domains, seed, _score(draft), prompts, excess_cv)


def _score(draft: Draft) -> float:
    return predict([text for text, _ in draft.entries]).score


def distinct(queries: Queries) -> dict[str, list[str]]:
    """Each query once, in its first domain, without blank ones; sorted, so that the order in the
    file does not matter."""
    seen: set[str] = set()
    pools: dict[str, list[str]] = {}
    for domain in sorted(queries):
        texts = sorted({text.strip() for text in queries[domain]} - seen - {""})
        seen.update(texts)
        if texts:
            pools[domain] = texts
    if not pools:
        raise DatasetError("there are no queries: expected {domain: [query, …]} with some text")
    return pools


def _check_size(queries_per_dataset: int) -> None:
    if queries_per_dataset < 1:
        raise ValueError(f"queries_per_dataset is {queries_per_dataset}: expected 1 or more")


# --- the search for a target score ---


@dataclass(frozen=True, slots=True)
class _Mixture:
    """A path of mixtures: keywords at position 0, whole queries at n, repetition at `end`.

    Up to n, each step turns one prompt of keywords into a query. From there on, each step adds one
    repetition, and the first repetition in a prompt replaces its query. One query is never
    replaced: with a single distinct token the Gini coefficient, and so the score, would fall. Long
    queries are replaced first, so that the last steps are small.
    """

    domains: tuple[str, ...]
    keywords: tuple[str, ...]
    queries: tuple[str, ...]
    filler: str
    order: tuple[int, ...]
    """The place of each prompt: repetition is spread over the dataset, not put at its start."""

    @staticmethod
    def draw(queries: Queries, rng: random.Random, size: int) -> _Mixture:
        texts = spread(queries, tuple(queries), rng, size)
        order = rng.sample(range(size), size)
        longest_first = tuple(sorted(texts, key=len, reverse=True))
        return _Mixture(
            tuple(queries),
            _keyword_prompts(queries, rng, size),
            longest_first,
            rng.choice(_FILLERS),
            tuple(order),
        )

    @property
    def end(self) -> int:
        """The last position."""
        return len(self.queries) + (len(self.queries) - 1) * REPEATED_WORDS

    def at(self, position: int) -> Draft:
        """The mixture at `position`, 0 to `end`."""
        entries = [self._entry(i, position) for i in range(len(self.queries))]
        return Draft("target", self.domains, tuple(entries[i] for i in self.order))

    def _entry(self, i: int, position: int) -> tuple[str, str]:
        if i >= position:
            return self.keywords[i], "target_keywords"
        words = min(REPEATED_WORDS, position - len(self.queries) - i * REPEATED_WORDS)
        if words < 1:
            return self.queries[i], "target_query"
        return repeated(self.filler, words), "target_repetition"


def _keyword_prompts(queries: Queries, rng: random.Random, size: int) -> tuple[str, ...]:
    """Prompts of words from the queries; no word occurs twice in the dataset."""
    texts = chain.from_iterable(queries.values())
    words = sorted({word for text in texts for word in _KEYWORD.findall(text.lower())})
    if len(words) < size:
        raise DatasetError(
            f"{size} prompts of different keywords need more than {len(words)} different words; "
            "add queries"
        )
    rng.shuffle(words)
    return tuple(" ".join(words[i : size * _KEYWORDS : size]) for i in range(size))


def _closest(mixture: _Mixture, target: float) -> tuple[Draft, float]:
    """Bisect the path, along which the score rises; the mixture nearest to `target` and its
    score."""
    low, high = 0, mixture.end
    seen = {position: _score(mixture.at(position)) for position in (low, high)}
    while high - low > 1:
        middle = (low + high) // 2
        seen[middle] = _score(mixture.at(middle))
        low, high = (middle, high) if seen[middle] < target else (low, middle)
    best = min(seen, key=lambda position: abs(seen[position] - target))
    return mixture.at(best), seen[best]
