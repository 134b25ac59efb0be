"""Dataset generation: what each strategy draws, determinism, the files written, and targets met."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from core.errors import DatasetError, FileError
from core.workload.folder import write
from core.workload.generator import TOLERANCE, Drawn, generate, load_queries, mix_to_target
from core.workload.predictor import predict
from core.workload.strategies import CLUSTERS, REPEATED_WORDS

SHIPPED = Path(__file__).parents[2] / "datasets" / "domain_queries.json"
DOMAINS = [domain for group in CLUSTERS.values() for domain in group]
OPENINGS = (
    "Explain",
    "Compare",
    "Why is there",
    "Describe",
    "Sketch",
    "Who found",
    "How large is",
    "Define",
)
WORDS = """
anchor apple arrow attic autumn badge bamboo barrel basket beacon bench bishop blanket blossom
border bottle branch bread bridge broom brush bucket butter button cabin cable camel candle canyon
carbon carpet castle cattle cellar chain chalk cherry chimney circle cliff clock cloud coast copper
coral corner cotton cradle crane crown crystal curtain dagger dancer desert diamond dinner doctor
dragon drawer eagle echo engine fabric falcon feather fence ferry finger flame flute forest fountain
garden ghost glacier glove grain granite guitar hammer harbor harvest hazel helmet honey horizon
insect island ivory jacket jungle kettle kitchen ladder lantern lemon library lizard lobster magnet
maple marble meadow mirror monkey mountain needle north ocean olive orbit orchard oyster palace
panther parade pebble pencil pepper piano pillow pilot planet pocket poetry prairie puzzle quarry
rabbit railway ribbon rocket saddle sailor salmon shadow shelter shoulder signal silver skeleton
spider spring square stable statue summer sunset temple thunder ticket tiger timber tower tractor
tunnel turtle valley velvet village violin volcano wagon whale whistle window winter wizard
"""


def made_up_queries(per_domain: int = 50) -> dict[str, list[str]]:
    """Distinct queries without much sense, the same ones on every machine."""
    rng = random.Random(7)
    words = WORDS.split()
    return {
        domain: [
            f"{rng.choice(OPENINGS)} {' '.join(rng.sample(words, 5))} {domain} {i}"
            for i in range(per_domain)
        ]
        for domain in DOMAINS
    }


QUERIES = made_up_queries()
DOMAIN_OF = {text: domain for domain, texts in QUERIES.items() for text in texts}


@pytest.fixture(scope="module")
def datasets() -> list[Drawn]:
    return generate(QUERIES)


def of_strategy(datasets: list[Drawn], strategy: str) -> list[Drawn]:
    found = [dataset for dataset in datasets if dataset.strategy == strategy]
    assert found, strategy
    return found


def domains_used(dataset: Drawn) -> Counter[str]:
    return Counter(DOMAIN_OF[text] for text in dataset.texts)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read_lines(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]


class TestStrategies:
    def test_come_in_order(self, datasets: list[Drawn]) -> None:
        assert [dataset.index for dataset in datasets] == list(range(1, 51))
        assert Counter(dataset.strategy for dataset in datasets) == {
            "high_repetition": 2,
            "single_domain": 4,
            "concentrated": 2,
            "mixed_per_query": 2,
            "diverse": 1,
            "sentence_structure": 1,
            "clusters": 1,
            "rising": 1,
            "random_domains": 36,
        }
        order = list(dict.fromkeys(dataset.strategy for dataset in datasets))
        assert order[0] == "high_repetition"
        assert order[-1] == "random_domains"

    def test_give_thirty_prompts_each_with_ids_of_their_own(self, datasets: list[Drawn]) -> None:
        for dataset in datasets:
            assert len(dataset.prompts) == 30
            assert len({prompt.id for prompt in dataset.prompts}) == 30
            assert all(prompt.text.strip() for prompt in dataset.prompts)

    def test_repeat_no_query_except_high_repetition(self, datasets: list[Drawn]) -> None:
        for dataset in datasets:
            distinct = len(set(dataset.texts))
            assert (distinct < 30) if dataset.strategy == "high_repetition" else (distinct == 30)

    def test_high_repetition_repeats_a_phrase(self, datasets: list[Drawn]) -> None:
        several, one = of_strategy(datasets, "high_repetition")
        assert len(set(several.texts)) == 4
        assert len(set(one.texts)) == 1
        assert len(one.texts[0].split()) == REPEATED_WORDS
        assert min(several.score, one.score) > 0.6

    def test_single_domains_are_different_domains(self, datasets: list[Drawn]) -> None:
        used = [domains_used(dataset) for dataset in of_strategy(datasets, "single_domain")]
        assert [len(domains) for domains in used] == [1] * 4
        assert len(set().union(*used)) == 4

    def test_concentrated_share_evenly(self, datasets: list[Drawn]) -> None:
        shares = [sorted(domains_used(d).values()) for d in of_strategy(datasets, "concentrated")]
        assert shares == [[15, 15], [10, 10, 10]]

    def test_mixed_prompts_join_queries_of_different_domains(self, datasets: list[Drawn]) -> None:
        for dataset, expected in zip(of_strategy(datasets, "mixed_per_query"), (3, 5), strict=True):
            joined = [[query for query in DOMAIN_OF if query in text] for text in dataset.texts]
            # A made-up query ends in its number, so "… 1" is also found within "… 12".
            longest = [
                [q for q in found if not any(q != o and o.startswith(q) for o in found)]
                for found in joined
            ]
            assert [len({DOMAIN_OF[query] for query in found}) for found in longest] == [
                expected
            ] * 30

    def test_diverse_covers_every_domain(self, datasets: list[Drawn]) -> None:
        (dataset,) = of_strategy(datasets, "diverse")
        shares = domains_used(dataset)
        assert set(shares) == set(DOMAINS)
        assert max(shares.values()) == 2

    def test_sentence_structure_changes_only_the_topics(self, datasets: list[Drawn]) -> None:
        (dataset,) = of_strategy(datasets, "sentence_structure")
        common = set.intersection(*(set(text.split()) for text in dataset.texts))
        assert len(common) >= 6

    def test_clusters_come_one_after_another(self, datasets: list[Drawn]) -> None:
        (dataset,) = of_strategy(datasets, "clusters")
        expected = [name for name in CLUSTERS for _ in range(6)]
        assert [prompt.category.removeprefix("cluster_") for prompt in dataset.prompts] == expected
        assert all(
            DOMAIN_OF[p.text] in CLUSTERS[p.category.removeprefix("cluster_")]
            for p in dataset.prompts
        )

    def test_rising_opens_more_domains_as_it_goes(self, datasets: list[Drawn]) -> None:
        (dataset,) = of_strategy(datasets, "rising")
        rank = [dataset.domains.index(DOMAIN_OF[text]) for text in dataset.texts]
        assert rank[0] == 0
        assert all(25 * (i + 1) / 30 > r for i, r in enumerate(rank))

    def test_random_combinations_go_through_all_sizes(self, datasets: list[Drawn]) -> None:
        sizes = [len(dataset.domains) for dataset in of_strategy(datasets, "random_domains")]
        assert sizes == [1, 2, 3, 5, 10, 15, 20] * 5 + [1]
        for dataset in of_strategy(datasets, "random_domains"):
            assert set(domains_used(dataset)) == set(dataset.domains)


class TestGenerate:
    def test_same_seed_gives_the_same_datasets_whatever_the_file_order(
        self, datasets: list[Drawn]
    ) -> None:
        backwards = {domain: QUERIES[domain][::-1] for domain in reversed(QUERIES)}
        assert generate(backwards, count=20) == datasets[:20]

    def test_another_seed_gives_others(self, datasets: list[Drawn]) -> None:
        for ours, others in zip(datasets, generate(QUERIES, seed=1), strict=True):
            assert ours.texts != others.texts

    def test_more_than_fifty_adds_random_combinations(self, datasets: list[Drawn]) -> None:
        more = generate(QUERIES, count=53)
        assert more[:50] == datasets
        assert [dataset.strategy for dataset in more[50:]] == ["random_domains"] * 3

    @pytest.mark.parametrize("size", [1, 7])
    def test_dataset_size_can_be_chosen(self, size: int) -> None:
        assert {
            len(dataset.prompts) for dataset in generate(QUERIES, queries_per_dataset=size)
        } == {size}

    def test_queries_that_occur_twice_count_once(self) -> None:
        doubled = {
            domain: [*texts, *texts, "  ", texts[0] + " "] for domain, texts in QUERIES.items()
        }
        assert generate(doubled, count=14) == generate(QUERIES, count=14)

    @pytest.mark.parametrize("count", [0, -1])
    def test_count_below_one_is_an_error(self, count: int) -> None:
        with pytest.raises(ValueError, match="count"):
            generate(QUERIES, count=count)

    def test_too_few_queries_is_an_error_that_names_the_domain(self) -> None:
        scarce = {domain: texts[:20] for domain, texts in QUERIES.items()}
        with pytest.raises(DatasetError, match=r"30 different queries .* which have 20 in total"):
            generate(scarce)

    @pytest.mark.parametrize("queries", [{}, {"art": []}, {"art": [" "]}])
    def test_no_queries_is_an_error(self, queries: dict[str, list[str]]) -> None:
        with pytest.raises(DatasetError, match="no queries"):
            generate(queries)


class TestWrite:
    def test_names_hold_the_score_of_the_texts_in_the_file(
        self, datasets: list[Drawn], tmp_path: Path
    ) -> None:
        files = write(datasets, tmp_path)
        assert [file.name[:3] for file in files] == [f"{i:03d}" for i in range(1, 51)]
        for file in files:
            rows = read_lines(file)
            assert len(rows) == 30
            assert all(list(row) == ["id", "text", "category"] for row in rows)
            assert file.stem[4:] == f"{predict([row['text'] for row in rows]).score:.4f}"

    def test_metadata_describes_every_file(self, datasets: list[Drawn], tmp_path: Path) -> None:
        files = write(datasets, tmp_path)
        entries: list[dict[str, Any]] = json.loads(
            (tmp_path / "metadata.json").read_text(encoding="utf-8")
        )
        assert [entry["file"] for entry in entries] == [file.name for file in files]
        assert entries[2] == {
            "index": 3,
            "file": files[2].name,
            "score": pytest.approx(datasets[2].score, abs=1e-12),
            "strategy": "single_domain",
            "domains": list(datasets[2].domains),
            "queries": 30,
            "seed": 0,
        }

    def test_same_seed_gives_the_same_bytes(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            write(generate(QUERIES, count=16, seed=3), tmp_path / name)
        assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")
        assert str(tmp_path) not in (tmp_path / "a" / "metadata.json").read_text(encoding="utf-8")

    def test_text_stays_readable_utf8(self, tmp_path: Path) -> None:
        cafe = {"art": [f"Was kostet ein Café in Zürich?\nZeile {i} – 日本" for i in range(30)]}
        datasets = generate(cafe, count=3)
        (file,) = write(datasets[2:], tmp_path)
        assert "Zürich?\\nZeile" in file.read_text(encoding="utf-8")
        assert [row["text"] for row in read_lines(file)] == datasets[2].texts

    def test_regenerating_replaces_its_own_files_and_no_other(
        self, datasets: list[Drawn], tmp_path: Path
    ) -> None:
        (tmp_path / "domain_queries.json").write_text("{}", encoding="utf-8")
        write(datasets[:5], tmp_path)
        other = generate(QUERIES, count=3, seed=9)
        files = write(other, tmp_path, replace=True)
        assert set(snapshot(tmp_path)) == {
            "domain_queries.json",
            "metadata.json",
            *(f.name for f in files),
        }

    def test_refuses_a_folder_with_datasets_of_someone_else(
        self, datasets: list[Drawn], tmp_path: Path
    ) -> None:
        (tmp_path / "001_0.7585.jsonl").write_text("{}\n", encoding="utf-8")
        before = snapshot(tmp_path)
        with pytest.raises(FileError, match=r"001_0\.7585\.jsonl.*another folder"):
            write(datasets[:2], tmp_path)
        assert snapshot(tmp_path) == before

    @pytest.mark.parametrize("content", ["{", "{}", "[1]", '[{"file": 3}]'])
    def test_refuses_metadata_of_someone_else(
        self, content: str, datasets: list[Drawn], tmp_path: Path
    ) -> None:
        (tmp_path / "metadata.json").write_text(content, encoding="utf-8")
        with pytest.raises(FileError, match=r"metadata\.json"):
            write(datasets[:2], tmp_path)

    def test_metadata_cannot_make_it_remove_files_elsewhere(
        self, datasets: list[Drawn], tmp_path: Path
    ) -> None:
        outside = tmp_path / "precious.jsonl"
        outside.write_text("keep\n", encoding="utf-8")
        folder = tmp_path / "out"
        folder.mkdir()
        (folder / "metadata.json").write_text('[{"file": "../precious.jsonl"}]', encoding="utf-8")
        write(datasets[:1], folder)
        assert outside.exists()

    def test_two_datasets_of_one_name_are_an_error(
        self, datasets: list[Drawn], tmp_path: Path
    ) -> None:
        with pytest.raises(ValueError, match="same file name"):
            write([datasets[0], datasets[0]], tmp_path)

    def test_stopped_half_way_leaves_whole_files_that_the_next_call_takes_over(
        self, datasets: list[Drawn], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(generate(QUERIES, count=4, seed=9), tmp_path)
        replace = Path.replace

        def fail_on_third(self: Path, target: Path) -> Path:
            if target.name.startswith("003"):
                raise OSError("no space left on device")
            return replace(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", fail_on_third)
            with pytest.raises(OSError, match="no space"):
                write(datasets[:4], tmp_path, replace=True)
        assert all(len(read_lines(file)) == 30 for file in tmp_path.glob("*.jsonl"))
        assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob(".*"))

        files = write(datasets[:4], tmp_path, replace=True)
        assert set(snapshot(tmp_path)) == {"metadata.json", *(file.name for file in files)}


class TestMixToTarget:
    @pytest.mark.parametrize("target", [0.3, 0.45, 0.6, 0.75, 0.9, 0.95])
    def test_meets_the_target(self, target: float) -> None:
        dataset = mix_to_target(QUERIES, target, seed=2, index=7)
        assert len(dataset.prompts) == 30
        assert predict(dataset.texts).score == dataset.score
        assert dataset.score == pytest.approx(target, abs=TOLERANCE)
        assert dataset.file == f"007_{dataset.score:.4f}.jsonl"

    def test_is_decided_by_the_seed(self) -> None:
        first, again, other = (mix_to_target(QUERIES, 0.5, seed=seed) for seed in (1, 1, 2))
        assert first == again
        assert first.texts != other.texts

    @pytest.mark.parametrize("target", [0.0, 1.0, float("nan"), 30.0])
    def test_out_of_reach_names_the_range(self, target: float) -> None:
        with pytest.raises(DatasetError, match=r"reach 0\.\d{4} to 0\.9\d{3}"):
            mix_to_target(QUERIES, target)

    @pytest.mark.skipif(not SHIPPED.is_file(), reason="datasets/domain_queries.json is not there")
    @pytest.mark.parametrize("target", [0.15, 0.25, 0.5, 0.95])
    def test_shipped_queries_meet_the_target(self, target: float) -> None:
        dataset = mix_to_target(load_queries(SHIPPED), target)
        assert dataset.score == pytest.approx(target, abs=TOLERANCE)


class TestQueryFile:
    def test_is_read(self, tmp_path: Path) -> None:
        file = tmp_path / "queries.json"
        file.write_text('{"art": ["Was ist Kunst?"]}', encoding="utf-8")
        assert load_queries(file) == {"art": ["Was ist Kunst?"]}

    @pytest.mark.parametrize("content", ["", "[]", '{"art": "x"}', '{"art": [1]}', '"x"'])
    def test_of_another_shape_is_an_error_that_names_it(self, content: str, tmp_path: Path) -> None:
        file = tmp_path / "queries.json"
        file.write_text(content, encoding="utf-8")
        with pytest.raises(FileError, match=r"queries\.json"):
            load_queries(file)

    @pytest.mark.skipif(not SHIPPED.is_file(), reason="datasets/domain_queries.json is not there")
    def test_shipped_holds_fifty_distinct_queries_for_each_of_25_domains(self) -> None:
        queries = load_queries(SHIPPED)
        assert set(queries) == set(DOMAINS)
        assert min(len(set(texts)) for texts in queries.values()) >= 50
