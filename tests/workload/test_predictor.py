"""The imbalance predictor: against hand-worked numbers, scikit-learn, and upstream's published
scores."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.oracle import ORACLE, needs_oracle

from core.workload.predictor import (
    MAX_FEATURES,
    WEIGHTS,
    count_tokens,
    entropy_bits,
    gini,
    predict,
    stop_words,
    tfidf_similarity,
    tokenize,
)

ROOT = Path(__file__).parents[2]

TWELVE = "water light music energy market house school table river paper glass stone"


def read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def read_texts(file: Path) -> list[str]:
    lines = file.read_text(encoding="utf-8").split("\n")
    return [json.loads(line)["text"] for line in lines if line]


def sklearn_similarity(texts: Sequence[str]) -> float:
    """The mean over all pairs, from the full matrix that core.workload.predictor does without."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.metrics.pairwise import cosine_similarity

    vectorizer = TfidfVectorizer(
        max_features=MAX_FEATURES, stop_words="english", ngram_range=(1, 2)
    )
    cosines = cosine_similarity(vectorizer.fit_transform(texts))
    return float(np.mean(cosines[np.triu_indices(len(texts), k=1)]))


class TestTokenizer:
    def test_gives_mixtral_ids_without_begin_of_sequence(self) -> None:
        assert tokenize("Hello world") == [22557, 1526]

    def test_counts_tokens(self) -> None:
        assert count_tokens("") == 0
        assert count_tokens(TWELVE) == 12

    def test_accepts_a_lone_surrogate(self) -> None:
        assert tokenize("a\ud800b") == tokenize("a?b")


class TestMeasures:
    @pytest.mark.parametrize(
        ("counts", "expected"),
        [
            ([5], 0.0),
            ([3, 3, 3], 0.0),
            ([1, 2], 1 / 6),
            ([0.0001, 1], 0.49990001),
            ([1, 2, 3, 4], 0.25),
        ],
    )
    def test_gini_of_known_counts(self, counts: list[int], expected: float) -> None:
        assert gini(counts) == pytest.approx(expected, abs=1e-8)
        assert gini(counts[::-1]) == pytest.approx(expected, abs=1e-8)

    @pytest.mark.parametrize(
        ("counts", "bits"), [([7], 0.0), ([1, 1], 1.0), ([2, 1, 1], 1.5), ([1] * 8, 3.0)]
    )
    def test_entropy_of_known_counts(self, counts: list[int], bits: float) -> None:
        assert entropy_bits(counts) == pytest.approx(bits, abs=1e-12)


class TestScore:
    def test_of_three_tokens_is_what_paper_and_pencil_give(self) -> None:
        found = predict(["water water light"])

        evenness = math.log2(3) - 2 / 3  # entropy of (2/3, 1/3) in bits; its maximum is log2(2) = 1
        contributions = {
            "token_repetition": 0.25 * 1 / 3,
            "top10_concentration": 0.20 * 1,
            "vocabulary_diversity": 0.15 * 1 / 3,
            "normalized_entropy": 0.10 * (1 - evenness),
            "gini_coefficient": 0.10 * 1 / 6,
            "bigram_concentration": 0.10 * 1,
        }
        got = {name: part["contribution"] for name, part in found.components.items()}
        assert got == pytest.approx(contributions, abs=1e-12)
        assert found.score == pytest.approx(sum(contributions.values()) / 0.9, abs=1e-12)
        assert found.raw_metrics == pytest.approx(
            {
                "total_tokens": 3,
                "unique_tokens": 2,
                "token_repetition_rate": 1 / 3,
                "top10_concentration": 1,
                "vocabulary_diversity": 2 / 3,
                "unigram_entropy": evenness,
                "gini_coefficient": 1 / 6,
                "bigram_concentration": 1,
                "unique_bigrams": 2,
                "bigram_diversity": 1,
            }
        )

    def test_top_ten_leaves_the_eleventh_out(self) -> None:
        metrics = predict([TWELVE]).raw_metrics
        assert metrics["top10_concentration"] == pytest.approx(10 / 12)
        assert metrics["bigram_concentration"] == pytest.approx(10 / 11)

    def test_bigrams_span_neighbouring_texts(self) -> None:
        metrics = predict(["water light", "water light"]).raw_metrics
        assert metrics["unique_bigrams"] == 2
        assert metrics["bigram_diversity"] == pytest.approx(2 / 3)

    def test_weights_all_components_with_two_texts(self) -> None:
        found = predict(["water water", "light"])
        assert math.fsum(part["weight"] for part in found.components.values()) == pytest.approx(1)
        assert list(found.components) == list(WEIGHTS)
        similarity = found.components["semantic_similarity"]
        assert similarity["value"] == pytest.approx(0, abs=1e-12)
        assert similarity["normalized_value"] == pytest.approx(0.5)
        assert similarity["contribution"] == pytest.approx(0.05)

    @pytest.mark.parametrize("texts", [["water light"], ["the", "the"], ["?", "!"]])
    def test_leaves_similarity_out_where_there_is_none(self, texts: list[str]) -> None:
        found = predict(texts)
        assert "semantic_similarity" not in found.components
        assert "semantic_similarity" not in found.raw_metrics
        contributions = math.fsum(part["contribution"] for part in found.components.values())
        assert found.score == pytest.approx(contributions / 0.9)

    def test_percentages_sum_to_the_score(self) -> None:
        found = predict(["What is a quark?", "What is a gluon?", "Bake bread."])
        assert math.fsum(p["percentage"] for p in found.components.values()) == pytest.approx(
            100 * found.score
        )

    def test_rises_with_repetition(self) -> None:
        varied, repeated = [TWELVE] * 3, ["water " * 12 + "light"] * 3
        assert predict(repeated).score > predict(varied).score

    def test_of_one_token_is_defined(self) -> None:
        found = predict(["water"])
        assert found.score == pytest.approx((0.20 + 0.10) / 0.9)  # top ten, and no entropy at all
        assert found.raw_metrics["bigram_concentration"] == 0

    @pytest.mark.parametrize(
        ("texts", "message"),
        [([], "no texts"), ([""], "1 empty text$"), (["", ""], "2 empty texts$")],
    )
    def test_of_nothing_is_an_error(self, texts: list[str], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            predict(texts)

    def test_of_a_bare_string_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="list of texts"):
            predict("water")

    @settings(deadline=None, max_examples=150)
    @given(st.lists(st.text(max_size=60), min_size=1, max_size=8))
    def test_lies_between_zero_and_one_for_any_texts(self, texts: list[str]) -> None:
        if any(texts):
            found = predict(texts)
            assert 0 <= found.score <= 1
            assert all(
                math.isfinite(value)
                for part in found.components.values()
                for value in part.values()
            )

    def test_of_fifty_datasets_takes_under_two_seconds(self) -> None:
        texts = [
            f"Explain how {a} changes the {b} of a {c}"
            for a, b, c in zip(*[TWELVE.split()] * 3, strict=True)
        ]
        datasets = [(texts * 3)[:30]] * 50
        predict(texts)
        start = time.perf_counter()
        for dataset in datasets:
            predict(dataset)
        assert time.perf_counter() - start < 2


class TestSimilarity:
    def test_of_two_texts_is_what_paper_and_pencil_give(self) -> None:
        rare = (
            math.log(3 / 2) + 1
        )  # "dog" and "cat dog" occur in one text of two; "cat" in both: weight 1
        assert tfidf_similarity(["cat dog", "cat fish"]) == pytest.approx(
            1 / (1 + 2 * rare**2), abs=1e-12
        )

    @pytest.mark.parametrize(
        "texts",
        [
            ["What is a quark?", "What is a gluon?", "How do you bake sourdough bread at home?"],
            [
                "Größe und Straße",
                "Straße nach Größe",
                "ИИ и МоЭ",
                "naïve café",
                "日本語 テキスト",
                "İstanbul ẞ",
            ],
            ["cat dog cat", "the and of", "dog"],
            ["same words here", "same words here"],
            ["x1 snake_case under_score", "don't can't x1", "C++ a b c 3.14"],
            ["word " * 40, "word other", "other other thing"],
        ],
        ids=["questions", "unicode", "one of stop words only", "equal", "odd words", "repetition"],
    )
    def test_agrees_with_scikit_learn(self, texts: list[str]) -> None:
        assert tfidf_similarity(texts) == pytest.approx(sklearn_similarity(texts), abs=1e-12)

    @settings(deadline=None, max_examples=60)
    @given(st.lists(st.text(alphabet="abcé_1 -", min_size=4, max_size=30), min_size=2, max_size=6))
    def test_agrees_with_scikit_learn_on_any_texts(self, texts: list[str]) -> None:
        found = tfidf_similarity(texts)
        if found is None:
            with pytest.raises(ValueError, match="empty vocabulary"):
                sklearn_similarity(texts)
        else:
            assert found == pytest.approx(sklearn_similarity(texts), abs=1e-9)

    def test_keeps_the_thousand_most_frequent_terms(self) -> None:
        words = [f"w{i:04d}" for i in range(MAX_FEATURES)]
        # Each word occurs twice, each pair of neighbours once: only the words are kept, and they
        # agree.
        texts = [" ".join(words), " ".join(reversed(words))]
        assert tfidf_similarity(texts) == pytest.approx(1, abs=1e-9)
        assert sklearn_similarity(texts) == pytest.approx(1, abs=1e-9)

    @pytest.mark.parametrize("texts", [[], ["alone here"], ["the of", "and a"], ["", ""]])
    def test_is_undefined_with_one_text_or_no_terms(self, texts: list[str]) -> None:
        assert tfidf_similarity(texts) is None

    def test_uses_scikit_learns_stop_words(self) -> None:
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

        assert stop_words() == ENGLISH_STOP_WORDS


@needs_oracle
class TestUpstream:
    def test_published_scores_are_met(self) -> None:
        published: Mapping[str, float] = read_json(ORACLE / "predicted_scores.json")
        files = sorted((ORACLE / "datasets").glob("*.jsonl"))
        assert len(files) == 25
        scores = {file.name: predict(read_texts(file)).score for file in files}
        assert scores == pytest.approx(published, abs=1e-9)

    def test_published_result_files_hold_the_same_measurements(self) -> None:
        results = sorted((ORACLE / "results").glob("*.json"))
        assert results
        for result in map(read_json, results):
            found = predict(read_texts(ORACLE / result["dataset_path"]))
            for name, value in result["imbalance_raw_metrics"].items():
                assert found.raw_metrics[name] == pytest.approx(value, abs=1e-9)

    def test_components_have_the_published_shape(self) -> None:
        result = read_json(ORACLE / "results" / "001.json")
        found = predict(read_texts(ORACLE / result["dataset_path"]))
        for name, part in result["imbalance_components"].items():
            assert list(found.components[name]) == list(part)
            assert found.components[name]["contribution"] == pytest.approx(
                part["contribution"], abs=1e-9
            )


def test_importing_the_module_loads_neither_tokenizer_nor_scikit_learn() -> None:
    heavy = "{'sentencepiece', 'mistral_common', 'sklearn', 'scipy', 'textual'}"
    modules = "core.workload.predictor, core.workload.generator, sys"
    code = f"import {modules}; sys.exit(bool({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
