"""Draws prompt datasets that skew a Mixture-of-Experts router by different amounts.

Owns the dataset strategies and the search for a wanted imbalance score; core/workload/folder.py
writes what was drawn. Every draw comes from `seed`: the same queries and seed give the same bytes.
Must not import the UI.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, cycle, islice
from pathlib import Path

from core.workload.predictor import predict

Queries = Mapping[str, Sequence[str]]
"""Queries by domain, as in datasets/domain_queries.json."""

PHRASES = (
    "the",
    "hello world",
    "Python programming",
    "1 2 3 4 5",
    "yes no",
    "all work and no play",
    "data",
    "one more time",
)
"""What the high-repetition prompts repeat."""

REPEATED_WORDS = 50
"""Words in a prompt of pure repetition."""

STRUCTURES = (
    "What would an expert in {a} notice first about {b}?",
    "Name three ideas from {a} that changed how people think about {b}.",
    "Why is it harder to explain {a} than {b} to a ten-year-old?",
)
"""Sentences in which only the two topics change."""

CLUSTERS: Mapping[str, tuple[str, ...]] = {
    "technical": ("programming", "technology", "mathematics", "gaming", "automotive"),
    "nature": ("science", "astronomy", "marine_biology", "agriculture", "medicine"),
    "arts": ("art", "music", "literature", "fashion", "architecture"),
    "society": ("history", "law", "business", "education", "travel"),
    "mind_and_life": ("philosophy", "religion", "psychology", "cooking", "sports"),
}
"""Domains whose vocabulary is close."""

RANDOM_SIZES = (1, 2, 3, 5, 10, 15, 20)
"""Numbers of domains that the random combinations go through in turn."""

TOLERANCE = 0.01
"""How far a dataset drawn for a target score may lie from it."""

_FILLERS = ("water", "energy", "music", "light", "market")  # one Mixtral token each
_KEYWORDS = 8  # words in a prompt of keywords
_DRAWS = 8  # draws tried for a target before giving up
_KEYWORD = re.compile(r"[^\W\d_]{4,}")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One line of a dataset file."""

    id: str
    text: str
    category: str


@dataclass(frozen=True, slots=True)
class Draft:
    """What a strategy draws: (text, category) of each prompt, and the domains they come from."""

    strategy: str
    domains: tuple[str, ...]
    entries: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Dataset:
    """Prompts drawn by one strategy, and their predicted imbalance score in [0, 1]."""

    index: int
    strategy: str
    domains: tuple[str, ...]
    seed: int
    score: float
    prompts: tuple[Prompt, ...]

    @property
    def file(self) -> str:
        """Name of the dataset's file."""
        return f"{self.index:03d}_{self.score:.4f}.jsonl"

    @property
    def texts(self) -> list[str]:
        """The prompts' texts, in file order."""
        return [prompt.text for prompt in self.prompts]


Strategy = Callable[[Queries, random.Random, int], Draft]
"""(queries, rng, number of prompts) → the prompts; nothing else decides what is drawn."""


def load_queries(file: Path) -> dict[str, list[str]]:
    """Read {domain: [query, …]} from a JSON file; ValueError names the file and what was
    expected."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not a JSON file in UTF-8: {error}") from error
    if not isinstance(found, dict) or not all(
        _is_list_of_text(queries) for queries in found.values()
    ):
        raise ValueError(f"{file}: expected one object of the form {{domain: [query, …]}}")
    return found


def _is_list_of_text(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def generate(
    queries: Queries, *, count: int = 50, seed: int = 0, queries_per_dataset: int = 30
) -> list[Dataset]:
    """Draw `count` datasets: the fixed strategies in order, then random combinations of domains.

    Each dataset has its own generator, so a smaller `count` gives the first datasets of a larger
    one.
    """
    if count < 1:
        raise ValueError(f"count is {count}: expected 1 or more datasets")
    pools = _distinct(queries)
    _check_size(queries_per_dataset)
    return [
        _dataset(
            index, strategy(pools, random.Random(f"{seed}:{index}"), queries_per_dataset), seed
        )
        for index, strategy in enumerate(islice(_strategies(tuple(pools), seed), count), 1)
    ]


def mix_to_target(
    queries: Queries, target: float, *, seed: int = 0, index: int = 1, queries_per_dataset: int = 30
) -> Dataset:
    """Draw a dataset whose predicted score lies within TOLERANCE of `target`.

    The search bisects a path of mixtures: from prompts of keywords that occur once each, through
    whole queries, to one word repeated. The low end is limited by the vocabulary (words share
    sub-word tokens, the ten most frequent tokens always hold their share) and by the similarity
    term, which is 0.05 for unrelated texts; the high end by the Gini coefficient, which needs some
    rare tokens beside the repeated one. With 30 prompts of the shipped queries that is about 0.11
    to 0.97. ValueError names the reachable range.
    """
    pools = _distinct(queries)
    _check_size(queries_per_dataset)
    reached: list[float] = []
    for draw in range(_DRAWS):
        mixture = _Mixture.draw(pools, random.Random(f"{seed}:target:{draw}"), queries_per_dataset)
        draft, score = _closest(mixture, target)
        if abs(score - target) <= TOLERANCE:
            return _dataset(index, draft, seed)
        reached += [_score(mixture.at(0)), _score(mixture.at(mixture.end)), score]
    raise ValueError(
        f"no mixture of {queries_per_dataset} prompts scores within {TOLERANCE} of {target}: "
        f"these queries reach {min(reached):.4f} to {max(reached):.4f} with seed {seed}"
    )


# --- the strategies ---


def high_repetition(queries: Queries, rng: random.Random, size: int, *, phrases: int) -> Draft:
    """Prompts that repeat a word or phrase; `phrases` different ones take turns."""
    chosen = rng.sample(PHRASES, phrases)
    texts = [_repeated(phrase, REPEATED_WORDS) for phrase in islice(cycle(chosen), size)]
    return Draft("high_repetition", (), tuple((text, "high_repetition") for text in texts))


def single_domain(queries: Queries, rng: random.Random, size: int, *, domain: str) -> Draft:
    """Queries of one domain."""
    return _shared_category(
        "single_domain", f"single_domain_{domain}", queries, (domain,), rng, size
    )


def concentrated(
    queries: Queries, rng: random.Random, size: int, *, domains: Sequence[str]
) -> Draft:
    """Queries of a few domains, evenly."""
    return _shared_category(
        "concentrated", f"concentrated_{len(domains)}", queries, domains, rng, size
    )


def mixed_per_query(queries: Queries, rng: random.Random, size: int, *, domains: int) -> Draft:
    """Prompts that each join one query from `domains` different domains."""
    pools = _shuffled(queries, rng)
    per_prompt = min(domains, len(pools))
    entries = []
    for _ in range(size):
        left = [domain for domain in pools if pools[domain]]
        if len(left) < per_prompt:
            raise ValueError(_too_few(size * per_prompt, queries, queries))
        parts = [pools[domain].pop() for domain in rng.sample(left, per_prompt)]
        entries.append((" ".join(parts), f"mixed_{per_prompt}_domains"))
    return Draft("mixed_per_query", tuple(queries), tuple(entries))


def diverse(queries: Queries, rng: random.Random, size: int) -> Draft:
    """Queries of all domains, evenly, in random order."""
    return _shared_category("diverse", "diverse_all_domains", queries, tuple(queries), rng, size)


def sentence_structure(queries: Queries, rng: random.Random, size: int) -> Draft:
    """One sentence over and over, its slots filled with other topics each time."""
    topics = [domain.replace("_", " ") for domain in queries]
    pairs = [(a, b) for a in topics for b in topics if a != b]
    if len(pairs) < size:
        raise ValueError(f"{size} different pairs of topics need more than {len(topics)} domains")
    structure = rng.choice(STRUCTURES)
    texts = [structure.format(a=a, b=b) for a, b in rng.sample(pairs, size)]
    return Draft(
        "sentence_structure", tuple(queries), tuple((text, "sentence_structure") for text in texts)
    )


def clusters(queries: Queries, rng: random.Random, size: int) -> Draft:
    """Runs of queries from related domains, one cluster after another."""
    groups = _present_clusters(queries)
    entries = []
    for (name, domains), share in zip(groups.items(), _even_shares(size, len(groups)), strict=True):
        texts = _spread(queries, domains, rng, share)
        entries += [(text, f"cluster_{name}") for text in texts]
    return Draft("clusters", tuple(queries), tuple(entries))


def rising(queries: Queries, rng: random.Random, size: int) -> Draft:
    """From one domain to all: prompt i of n is drawn from the first ⌈i/n · domains⌉ of a random
    order."""
    pools = _shuffled(queries, rng)
    order = rng.sample(list(pools), len(pools))
    entries = []
    for i in range(1, size + 1):
        open_domains = order[: math.ceil(i * len(order) / size)]
        left = [domain for domain in open_domains if pools[domain]]
        if not left:
            raise ValueError(_too_few(i, open_domains, queries))
        entries.append((pools[rng.choice(left)].pop(), f"rising_{len(open_domains)}_domains"))
    return Draft("rising", tuple(order), tuple(entries))


def random_domains(queries: Queries, rng: random.Random, size: int, *, domains: int) -> Draft:
    """Queries of a random combination of domains, evenly."""
    chosen = rng.sample(list(queries), min(domains, len(queries)))
    return _shared_category(
        "random_domains", f"random_{len(chosen)}_domains", queries, chosen, rng, size
    )


def _strategies(domains: Sequence[str], seed: int) -> Iterator[Strategy]:
    """The strategies in index order, without end; `seed` decides which domains the concentrated
    ones get."""
    order = cycle(random.Random(f"{seed}:domains").sample(domains, len(domains)))
    yield partial(high_repetition, phrases=4)
    yield partial(high_repetition, phrases=1)
    for _ in range(4):
        yield partial(single_domain, domain=next(order))
    for n in (2, 3):
        yield partial(concentrated, domains=tuple(islice(order, min(n, len(domains)))))
    for n in (3, 5):
        yield partial(mixed_per_query, domains=n)
    yield from (diverse, sentence_structure, clusters, rising)
    for n in cycle(RANDOM_SIZES):
        yield partial(random_domains, domains=n)


def _dataset(index: int, draft: Draft, seed: int) -> Dataset:
    prompts = tuple(
        Prompt(f"{draft.strategy}_{i}", text, category)
        for i, (text, category) in enumerate(draft.entries)
    )
    return Dataset(index, draft.strategy, draft.domains, seed, _score(draft), prompts)


def _score(draft: Draft) -> float:
    return predict([text for text, _ in draft.entries]).score


# --- drawing queries ---


def _distinct(queries: Queries) -> dict[str, list[str]]:
    """Each query once, in its first domain, blanks dropped; sorted, so that file order changes
    nothing."""
    seen: set[str] = set()
    pools: dict[str, list[str]] = {}
    for domain in sorted(queries):
        texts = sorted({text.strip() for text in queries[domain]} - seen - {""})
        seen.update(texts)
        if texts:
            pools[domain] = texts
    if not pools:
        raise ValueError("there are no queries: expected {domain: [query, …]} with some text")
    return pools


def _check_size(queries_per_dataset: int) -> None:
    if queries_per_dataset < 1:
        raise ValueError(f"queries_per_dataset is {queries_per_dataset}: expected 1 or more")


def _shuffled(queries: Queries, rng: random.Random) -> dict[str, list[str]]:
    return {domain: rng.sample(texts, len(texts)) for domain, texts in queries.items()}


def _shared_category(
    strategy: str,
    category: str,
    queries: Queries,
    domains: Sequence[str],
    rng: random.Random,
    size: int,
) -> Draft:
    texts = _spread(queries, domains, rng, size)
    return Draft(strategy, tuple(domains), tuple((text, category) for text in texts))


def _spread(queries: Queries, domains: Sequence[str], rng: random.Random, size: int) -> list[str]:
    """`size` different queries, as evenly over `domains` as these allow, in random order."""
    pools = _shuffled(
        {domain: queries[domain] for domain in rng.sample(domains, len(domains))}, rng
    )
    rounds = range(max(map(len, pools.values()), default=0))
    turns = (pool[i] for i in rounds for pool in pools.values() if i < len(pool))
    texts = list(islice(turns, size))
    if len(texts) < size:
        raise ValueError(_too_few(size, domains, queries))
    rng.shuffle(texts)
    return texts


def _too_few(wanted: int, domains: Iterable[str], queries: Queries) -> str:
    names = list(domains)
    held = sum(len(queries[name]) for name in names)
    return (
        f"{wanted} different queries are wanted of {', '.join(names)}, which hold {held} in all: "
        "add queries, or ask for fewer a dataset"
    )


def _present_clusters(queries: Queries) -> dict[str, list[str]]:
    """The clusters' domains that have queries; domains of no cluster form one of their own."""
    known = set(chain.from_iterable(CLUSTERS.values()))
    groups = {name: [d for d in domains if d in queries] for name, domains in CLUSTERS.items()}
    groups["other"] = [domain for domain in queries if domain not in known]
    return {name: domains for name, domains in groups.items() if domains}


def _even_shares(size: int, parts: int) -> list[int]:
    return [size * (i + 1) // parts - size * i // parts for i in range(parts)]


def _repeated(phrase: str, words: int) -> str:
    """`phrase` over and over, cut to `words` words."""
    return " ".join(islice(cycle(phrase.split()), words))


# --- the search for a target score ---


@dataclass(frozen=True, slots=True)
class _Mixture:
    """A path from keywords (position 0) through whole queries (position n) to repetition (position
    `end`).

    Up to n each step turns one prompt of keywords into a query; from there each step adds one
    repetition, and a query gives way to its first. One query is never replaced: with a single
    distinct token left the Gini coefficient, and so the score, would fall. Long queries go first,
    so that the last steps stay small.
    """

    domains: tuple[str, ...]
    keywords: tuple[str, ...]
    queries: tuple[str, ...]
    filler: str
    order: tuple[int, ...]
    """Where each prompt goes: repetition is spread over the dataset, not its head."""

    @staticmethod
    def draw(queries: Queries, rng: random.Random, size: int) -> _Mixture:
        texts = _spread(queries, tuple(queries), rng, size)
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
        return _repeated(self.filler, words), "target_repetition"


def _keyword_prompts(queries: Queries, rng: random.Random, size: int) -> tuple[str, ...]:
    """Prompts of words from the queries, no word twice in the dataset."""
    texts = chain.from_iterable(queries.values())
    words = sorted({word for text in texts for word in _KEYWORD.findall(text.lower())})
    if len(words) < size:
        raise ValueError(
            f"{size} prompts of different keywords need more than {len(words)} different words"
        )
    rng.shuffle(words)
    return tuple(" ".join(words[i : size * _KEYWORDS : size]) for i in range(size))


def _closest(mixture: _Mixture, target: float) -> tuple[Draft, float]:
    """Bisect the path, on which the score rises, and return the mixture seen nearest to
    `target`."""
    low, high = 0, mixture.end
    seen = {position: _score(mixture.at(position)) for position in (low, high)}
    while high - low > 1:
        middle = (low + high) // 2
        seen[middle] = _score(mixture.at(middle))
        low, high = (middle, high) if seen[middle] < target else (low, middle)
    best = min(seen, key=lambda position: abs(seen[position] - target))
    return mixture.at(best), seen[best]
