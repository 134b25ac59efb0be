"""The strategies by which datasets are generated: each draws prompts from queries by domain.

A strategy depends on its arguments and on the random generator it is given, and on nothing else.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, cycle, islice

from core.errors import DatasetError

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
"""Domains with a similar vocabulary."""

RANDOM_SIZES = (1, 2, 3, 5, 10, 15, 20)
"""Numbers of domains that the random combinations use in turn."""


@dataclass(frozen=True, slots=True)
class Draft:
    """What a strategy drew: (text, category) of each prompt, and the domains they come from."""

    strategy: str
    domains: tuple[str, ...]
    entries: tuple[tuple[str, str], ...]


Strategy = Callable[[Queries, random.Random, int], Draft]
"""(queries, rng, number of prompts) → the prompts."""


def high_repetition(queries: Queries, rng: random.Random, size: int, *, phrases: int) -> Draft:
    """Prompts that repeat a word or phrase; `phrases` different ones take turns."""
    chosen = rng.sample(PHRASES, phrases)
    texts = [repeated(phrase, REPEATED_WORDS) for phrase in islice(cycle(chosen), size)]
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
            raise _too_few(size * per_prompt, queries, queries)
        parts = [pools[domain].pop() for domain in rng.sample(left, per_prompt)]
        entries.append((" ".join(parts), f"mixed_{per_prompt}_domains"))
    return Draft("mixed_per_query", tuple(queries), tuple(entries))


def diverse(queries: Queries, rng: random.Random, size: int) -> Draft:
    """Queries of all domains, evenly, in random order."""
    return _shared_category("diverse", "diverse_all_domains", queries, tuple(queries), rng, size)


def sentence_structure(queries: Queries, rng: random.Random, size: int) -> Draft:
    """One sentence repeated, with other topics in its slots each time."""
    topics = [domain.replace("_", " ") for domain in queries]
    pairs = [(a, b) for a in topics for b in topics if a != b]
    if len(pairs) < size:
        raise DatasetError(
            f"{size} different pairs of topics need more than {len(topics)} domains; add domains"
        )
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
        texts = spread(queries, domains, rng, share)
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
            raise _too_few(i, open_domains, queries)
        entries.append((pools[rng.choice(left)].pop(), f"rising_{len(open_domains)}_domains"))
    return Draft("rising", tuple(order), tuple(entries))


def random_domains(queries: Queries, rng: random.Random, size: int, *, domains: int) -> Draft:
    """Queries of a random combination of domains, evenly."""
    chosen = rng.sample(list(queries), min(domains, len(queries)))
    return _shared_category(
        "random_domains", f"random_{len(chosen)}_domains", queries, chosen, rng, size
    )


def strategies(domains: Sequence[str], seed: int) -> Iterator[Strategy]:
    """The strategies in index order, without end.

    `seed` decides which domains `single_domain` and `concentrated` get.
    """
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


# --- drawing queries ---


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
    texts = spread(queries, domains, rng, size)
    return Draft(strategy, tuple(domains), tuple((text, category) for text in texts))


def spread(queries: Queries, domains: Sequence[str], rng: random.Random, size: int) -> list[str]:
    """`size` different queries, as evenly over `domains` as these allow, in random order."""
    pools = _shuffled(
        {domain: queries[domain] for domain in rng.sample(domains, len(domains))}, rng
    )
    rounds = range(max(map(len, pools.values()), default=0))
    turns = (pool[i] for i in rounds for pool in pools.values() if i < len(pool))
    texts = list(islice(turns, size))
    if len(texts) < size:
        raise _too_few(size, domains, queries)
    rng.shuffle(texts)
    return texts


def _too_few(wanted: int, domains: Iterable[str], queries: Queries) -> DatasetError:
    names = list(domains)
    available = sum(len(queries[name]) for name in names)
    return DatasetError(
        f"{wanted} different queries are needed from {', '.join(names)}, which have {available} "
        "in total; add queries, or use fewer per dataset"
    )


def _present_clusters(queries: Queries) -> dict[str, list[str]]:
    """The domains with queries, by cluster; those in no cluster form the cluster "other"."""
    known = set(chain.from_iterable(CLUSTERS.values()))
    groups = {name: [d for d in domains if d in queries] for name, domains in CLUSTERS.items()}
    groups["other"] = [domain for domain in queries if domain not in known]
    return {name: domains for name, domains in groups.items() if domains}


def _even_shares(size: int, parts: int) -> list[int]:
    return [size * (i + 1) // parts - size * i // parts for i in range(parts)]


def repeated(phrase: str, words: int) -> str:
    """`phrase` repeated, cut to `words` words."""
    return " ".join(islice(cycle(phrase.split()), words))
