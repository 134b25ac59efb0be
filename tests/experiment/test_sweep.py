"""[sweep]: combinations, the cells that they make, and the order in which these are run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError
from core.experiment import cell, config, sweep, tables
from core.experiment.sweep import Sweep

SEQS, TOKENS = "backends.*.max_num_seqs", "backends.*.max_num_batched_tokens"
CONFIG = """[experiment]
datasets = "*.jsonl"
[[backends]]
name = "baseline"
[[backends]]
name = "all2all"
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "001.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "experiments.toml").write_text(CONFIG)
    return tmp_path / "experiments.toml"


def test_grid_is_every_value_with_every_other_and_zip_goes_along() -> None:
    table = Sweep(grid={SEQS: [8, 32]}, zip={"model.id": ["a", "b"], "experiment.seed": [1, 2]})
    assert sweep.combinations(table) == [
        {SEQS: 8, "model.id": "a", "experiment.seed": 1},
        {SEQS: 8, "model.id": "b", "experiment.seed": 2},
        {SEQS: 32, "model.id": "a", "experiment.seed": 1},
        {SEQS: 32, "model.id": "b", "experiment.seed": 2},
    ]


def test_listed_cells_are_taken_as_they_are_and_excluded_ones_are_left_out() -> None:
    cells = [{"name": "small", SEQS: 8}, {"name": "large", SEQS: 32}]
    table = Sweep(cells=cells, grid={TOKENS: [16, 64]}, exclude=[{SEQS: 32, TOKENS: 16}])
    assert sweep.combinations(table) == [
        {"name": "small", SEQS: 8, TOKENS: 16},
        {"name": "small", SEQS: 8, TOKENS: 64},
        {"name": "large", SEQS: 32, TOKENS: 64},
    ]


def test_tomls_dotted_keys_are_keys() -> None:
    nested = {"backends": {"baseline": {"max_num_seqs": [8, 32]}}}
    assert sweep.combinations(Sweep(grid=nested)) == [
        {"backends.baseline.max_num_seqs": 8},
        {"backends.baseline.max_num_seqs": 32},
    ]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (Sweep(), "expected grid, zip or cells, got none"),
        (Sweep(grid={SEQS: []}), "expected a list with a value or more"),
        (Sweep(grid={SEQS: 8}), "expected a list with a value or more"),
        (Sweep(zip={SEQS: [1, 2], TOKENS: [1]}), "lists of one length; .*seqs has 2, .* has 1"),
        (Sweep(grid={SEQS: [1]}, exclude=[{SEQS: 1}]), "no combination is left"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(table: Sweep, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        sweep.combinations(table)


def test_a_setting_takes_the_place_of_the_files_own_value(place: Path) -> None:
    settings = {SEQS: 8, "backends.all2all.max_num_seqs": 4, "experiment.slo.ttft_ms": 500}
    loaded = config.load(place, settings)
    assert [b.max_num_seqs for b in loaded.backends] == [8, 4]
    assert loaded.experiment.slo.ttft_ms == 500
    assert config.load(place, {"experiment.request_rate": float("inf")}) == config.load(place)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("sweep.grid", "expected a key such as"),
        ("experiment", "expected a key such as"),
        ("backends.tp.eplb", "with \\* or one of baseline, all2all as the name"),
        ("backends.*.name", "no key that is the name itself"),
        ("backends.*.max_seqs", "max_seqs: unknown key; did you mean 'max_num_seqs'"),
        ("experiment.seed.x.y", "x: |x.y: |seed"),
        ("model.max_model_len", "expected a whole number of at least 1, got 0"),
    ],
)
def test_a_setting_that_cannot_be_is_an_error_that_names_it(
    place: Path, key: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        config.load(place, {key: 0})


def slugs(place: Path, **table: object) -> list[str]:
    return [one.slug for one in cell.of_sweep(place, Sweep(**table), {})]  # type: ignore[arg-type]


def test_what_does_not_concern_a_backend_does_not_multiply_it(place: Path) -> None:
    grid = {"backends.baseline.max_num_seqs": [8, 32], "experiment.output_len": [4, 8]}
    assert slugs(place, grid=grid) == [
        "baseline,max_num_seqs=8,output_len=4",
        "all2all,output_len=4",
        "baseline,max_num_seqs=8,output_len=8",
        "all2all,output_len=8",
        "baseline,max_num_seqs=32,output_len=4",
        "baseline,max_num_seqs=32,output_len=8",
    ]


def test_a_cell_has_its_one_backend_with_its_settings(place: Path) -> None:
    made = cell.of_sweep(place, Sweep(grid={SEQS: [8, 32]}), {TOKENS: 64}, ["all2all"])
    assert [(c.backend, c.config.backends[0].max_num_seqs) for c in made] == [
        ("all2all", 8),
        ("all2all", 32),
    ]
    assert all(c.config.backends[0].max_num_batched_tokens == 64 for c in made)
    assert all(len(c.config.backends) == 1 and c.config.sweep is None for c in made)


def test_names_of_folders_are_safe_and_each_cells_own(place: Path) -> None:
    grid = {"backends.*.moe_backend": ["../a b", "../a/b", "x" * 200, "../A-B"]}
    made = slugs(place, grid=grid)
    assert made[:3] == [
        "baseline,moe_backend=..-a-b",
        "all2all,moe_backend=..-a-b",
        "baseline,moe_backend=..-a-b-2",
    ]
    assert len({slug.lower() for slug in made}) == len(made) == 8
    assert all("/" not in slug and len(slug) <= 123 for slug in made)
    cells = [{"name": "tp 4", "backends.*.tensor_parallel": 4}]
    assert slugs(place, cells=cells)[0] == "tp-4-baseline,tensor_parallel=4"


def test_a_combination_that_no_engine_takes_is_named_before_anything_starts(place: Path) -> None:
    said = "expected at least max_num_seqs.*\n.*combination .*tokens = 8.*; exclude it"
    with pytest.raises(ConfigError, match=said):
        cell.of_sweep(place, Sweep(grid={SEQS: [8, 32], TOKENS: [64, 8]}), {})


@given(count=st.integers(1, 12), seed=st.integers(0, 1000), pairs=st.integers(1, 3))
def test_the_order_of_cells_is_balanced_over_time(count: int, seed: int, pairs: int) -> None:
    """Every cell has the same mean place, so that a steady drift moves none against another."""
    loaded = config.Config(
        path=Path("f"),
        experiment=tables.Experiment(),
        model=tables.Model(),
        backends=(),
        dataset_paths=(),
    )
    cells = [cell.Cell(slug=f"c{n}", settings={}, config=loaded) for n in range(count)]
    places: Counter[str] = Counter()
    for start in range(1, 2 * pairs + 1):
        for place, one in enumerate(cell.order(cells, start, seed)):
            places[one.slug] += place
    assert set(places.values()) == {pairs * (count - 1)}
