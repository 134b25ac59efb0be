"""Predicts from texts alone how strongly they skew a Mixture-of-Experts router.

Owns the imbalance score of a dataset (0: varied, 1: one token repeated) and Mixtral's tokenizer.
sentencepiece is imported with the first text, not before.

Score = Σ weight·value / Σ weight over the components that apply, clamped to [0, 1]; see WEIGHTS.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from core.stats import descriptive

WEIGHTS: Mapping[str, float] = {
    "token_repetition": 0.25,
    "top10_concentration": 0.20,
    "vocabulary_diversity": 0.15,  # its inverse is weighted
    "normalized_entropy": 0.10,  # its inverse is weighted
    "gini_coefficient": 0.10,
    "bigram_concentration": 0.10,
    "semantic_similarity": 0.10,  # left out if it is undefined
}
MAX_FEATURES = 1000
"""Number of TF-IDF terms that are kept: the most frequent ones."""

_TOP = 10
_WORD = re.compile(r"\b\w\w+\b")


@dataclass(frozen=True, slots=True)
class Prediction:
    """The score of some texts in [0, 1], its weighted components, and the raw measurements."""

    score: float
    components: Mapping[str, Mapping[str, float]]
    raw_metrics: Mapping[str, float]

    def as_result(self) -> dict[str, Any]:
        """The prediction under upstream's result keys."""
        return {
            "imbalance_score": self.score,
            "imbalance_components": dict(self.components),
            "imbalance_raw_metrics": dict(self.raw_metrics),
        }


def predict(texts: Sequence[str]) -> Prediction:
    """Score `texts` as one dataset. ValueError if they have no tokens."""
    if isinstance(texts, str):
        raise ValueError("predict scores a list of texts, not one string: pass [text]")
    if not texts:
        raise ValueError("there are no texts to score")
    tokens = list(chain.from_iterable(map(tokenize, texts)))
    if not tokens:
        number = "1 empty text" if len(texts) == 1 else f"{len(texts)} empty texts"
        raise ValueError(f"nothing to score: {number}")
    metrics = _token_metrics(tokens)
    similarity = tfidf_similarity(texts)
    if similarity is not None:
        metrics["semantic_similarity"] = similarity
    components = _components(metrics)
    score = math.fsum(part["normalized_contribution"] for part in components.values())
    return Prediction(min(1.0, max(0.0, score)), components, metrics)


def tokenize(text: str) -> list[int]:
    """Mixtral's token ids of `text`, without a begin-of-sequence token."""
    # A lone surrogate is legal in JSON and in str, but has no UTF-8 form for the tokenizer.
    valid = text.encode("utf-8", "replace").decode("utf-8")
    tokens: list[int] = _tokenizer().encode(valid)
    return tokens


def count_tokens(text: str) -> int:
    """Number of Mixtral tokens in `text`, without a begin-of-sequence token."""
    return len(tokenize(text))


def gini(counts: Sequence[int]) -> float:
    """Gini coefficient of positive counts."""
    return float(descriptive.gini(np.asarray(counts, dtype=np.float64)))


def entropy_bits(counts: Sequence[int]) -> float:
    """Shannon entropy of positive counts in bits: −Σ p·log2 p."""
    p = np.asarray(counts, dtype=np.float64)
    p = p / p.sum()
    return float(max(0.0, -(p @ np.log2(p))))


def tfidf_similarity(texts: Sequence[str]) -> float | None:
    """Mean cosine over all pairs of the texts' TF-IDF vectors; None if there are fewer than 2 texts
    or no terms.

    With unit vectors v the mean is (|Σv|² − Σ|v|²) / (n(n−1)), so no n×n matrix is needed. A text
    without terms has the zero vector, whose cosine with every other is 0.
    """
    counts = [Counter(_terms(text)) for text in texts]
    column = _vocabulary(counts)
    n = len(texts)
    if n < 2 or not column:
        return None
    cells = [
        (row, column[term], k)
        for row, c in enumerate(counts)
        for term, k in c.items()
        if term in column
    ]
    rows, columns, occurrences = np.array(cells, dtype=np.int64).T
    documents = np.bincount(columns, minlength=len(column))
    idf = np.log((1 + n) / (1 + documents)) + 1
    weights = occurrences * idf[columns]
    lengths = np.sqrt(np.bincount(rows, weights**2, minlength=n))
    total = np.bincount(columns, weights / lengths[rows])
    return float((total @ total - np.count_nonzero(lengths)) / (n * (n - 1)))


def _token_metrics(tokens: Sequence[int]) -> dict[str, float]:
    """Measurements of the texts' tokens as one sequence: a bigram may span two neighbouring
    texts."""
    unigrams = Counter(tokens)
    bigrams = Counter(pairwise(tokens))
    counts = list(unigrams.values())
    diversity = len(unigrams) / len(tokens)
    return {
        "total_tokens": len(tokens),
        "unique_tokens": len(unigrams),
        "token_repetition_rate": 1 - diversity,
        "top10_concentration": _top_share(unigrams),
        "vocabulary_diversity": diversity,
        "unigram_entropy": entropy_bits(counts),
        "gini_coefficient": gini(counts),
        "bigram_concentration": _top_share(bigrams),
        "unique_bigrams": len(bigrams),
        "bigram_diversity": len(bigrams) / max(1, bigrams.total()),
    }


def _top_share(counts: Counter[Any]) -> float:
    """Share of all occurrences that the ten most frequent keys have; 0 if empty."""
    return sum(n for _, n in counts.most_common(_TOP)) / max(1, counts.total())


def _components(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """What each component adds to the score: its normalized_contribution, whose sum is the score;
    percentage is that × 100."""
    views = _views(metrics)
    used_weight = math.fsum(WEIGHTS[name] for name in views)
    return {name: _component(view, WEIGHTS[name], used_weight) for name, view in views.items()}


def _component(view: dict[str, float], weight: float, used_weight: float) -> dict[str, float]:
    contribution = weight * list(view.values())[-1]
    share = contribution / used_weight
    return view | {
        "weight": weight,
        "contribution": contribution,
        "normalized_contribution": share,
        "percentage": share * 100,
    }


def _views(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Each component's measurement and what is derived from it; the last entry, in [0, 1], is the
    one that is weighted."""
    diversity = metrics["vocabulary_diversity"]
    evenness = _evenness(metrics)
    views = {
        "token_repetition": {"value": metrics["token_repetition_rate"]},
        "top10_concentration": {"value": metrics["top10_concentration"]},
        "vocabulary_diversity": {"value": diversity, "inverse_value": 1 - diversity},
        "normalized_entropy": {
            "value": metrics["unigram_entropy"],
            "normalized_value": evenness,
            "inverse_normalized_value": 1 - evenness,
        },
        "gini_coefficient": {"value": metrics["gini_coefficient"]},
        "bigram_concentration": {"value": metrics["bigram_concentration"]},
    }
    if "semantic_similarity" in metrics:
        cosine = metrics["semantic_similarity"]
        views["semantic_similarity"] = {"value": cosine, "normalized_value": (cosine + 1) / 2}
    return views


def _evenness(metrics: Mapping[str, float]) -> float:
    """Entropy over its maximum log2(unique tokens); 0 for a single unique token, the most uneven
    text."""
    unique = metrics["unique_tokens"]
    return min(1.0, metrics["unigram_entropy"] / math.log2(unique)) if unique > 1 else 0.0


def _terms(text: str) -> list[str]:
    """Words of two letters and more, without stop words, and the pairs of neighbours left."""
    words = [word for word in _WORD.findall(text.lower()) if word not in stop_words()]
    return words + [f"{first} {second}" for first, second in pairwise(words)]


def _vocabulary(counts: Sequence[Counter[str]]) -> dict[str, int]:
    """Column of each term that is kept. Ties at the limit are resolved alphabetically."""
    totals: Counter[str] = Counter()
    for count in counts:
        totals.update(count)
    kept = sorted(totals, key=lambda term: (-totals[term], term))[:MAX_FEATURES]
    return {term: column for column, term in enumerate(kept)}


@cache
def stop_words() -> frozenset[str]:
    """The 318 English words of scikit-learn's list (Glasgow Information Retrieval Group)."""
    return frozenset(Path(__file__).with_name("stopwords.txt").read_text(encoding="utf-8").split())


@cache
def _tokenizer() -> Any:
    import sentencepiece  # takes 30 ms: only for commands that score texts

    return sentencepiece.SentencePieceProcessor(model_file=str(_tokenizer_file()))


def _tokenizer_file() -> Path:
    """Mixtral's tokenizer file inside mistral-common, found without importing that package."""
    spec = find_spec("mistral_common")
    for folder in (spec and spec.submodule_search_locations) or ():
        file = Path(folder, "data", "tokenizer.model.v1")
        if file.is_file():
            return file
    raise FileNotFoundError(
        "Mixtral's tokenizer file data/tokenizer.model.v1 is not in package mistral_common; "
        "install it: pip install 'mistral-common>=1.8'"
    )
