"""Doses in the plan, in results, and kept apart from natural runs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from msgspec.structs import replace

from core import analysis, config, dose, plan
from core.config import Config, ConfigError, Forcing
from core.dose import Dose

BACKENDS = '[[backends]]\nname = "baseline"\n[[backends]]\nname = "all2all"\n'


def loaded(folder: Path, text: str) -> Config:
    """Two backends, two data sets."""
    for name in ("001_0.1", "002_0.2"):
        (folder / f"{name}.jsonl").write_text('{"id": "a", "text": "hello"}\n')
    (folder / "experiments.toml").write_text(f'[experiment]\ndatasets = "*.jsonl"\n{text}\n{BACKENDS}')
    return config.load(folder / "experiments.toml")


def test_a_label_names_the_dose_and_is_read_back() -> None:
    hot = Dose("hot-rank", 0.5)
    assert hot.label == "hot-rank~0.5"
    assert plan.label("001", 1, hot) == "001~hot-rank~0.5"
    assert plan.label("001", 2, hot) == "001-r2~hot-rank~0.5"
    assert dose.of_label("001-r2~hot-rank~0.5") == hot
    assert dose.of_label("001-r2") is None


def test_every_data_set_runs_naturally_and_at_every_dose_in_one_shuffled_order(tmp_path: Path) -> None:
    made = plan.make(loaded(tmp_path, 'repeats = 2\n[dose]\nlevels = [0, 1.5]\npatterns = ["hot-experts", "rotating"]'))
    labels = {b: [r.label for r in made.runs if r.backend == b] for b in ("baseline", "all2all")}
    assert labels["baseline"] == labels["all2all"]
    assert Counter(labels["baseline"]).total() == len(set(labels["baseline"])) == 2 * 2 * 5
    assert {"001", "001-r2~rotating~1.5", "002~hot-experts~0"} < set(labels["baseline"])
    assert labels["baseline"] != sorted(labels["baseline"])
    assert all(r.dose == dose.of_label(r.label) for r in made.runs)


def test_without_doses_nothing_is_forced(tmp_path: Path) -> None:
    assert {r.dose for r in plan.make(loaded(tmp_path, "")).runs} == {None}


def test_options_take_the_place_of_the_table(tmp_path: Path) -> None:
    without = loaded(tmp_path, "")
    assert config.with_doses(without, [], []).dose is None
    assert config.with_doses(without, [0, 2.5], []).dose == Forcing(levels=[0, 2.5])
    table = replace(without, dose=Forcing(levels=[1.0], rotate_steps=8))
    assert config.with_doses(table, [], ["spread"]).dose == Forcing(levels=[1.0], patterns=["spread"], rotate_steps=8)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("levels = [0, -1]", "[dose], levels, item 2: expected a CV of expert load, a number of at least 0, got -1"),
        ('patterns = ["hot"]', '[dose], patterns, item 1: expected "hot-experts" or "hot-rank" or "spread" or'),
        ("levels = []", "[dose]: expected at least one level and one pattern, got none"),
        ("levels = [0.00001]", "[dose], levels: expected at most 4 decimals, got 1e-05"),
        ("rotate_step = 3", "[dose], rotate_step: unknown key; did you mean 'rotate_steps'?"),
    ],
)
def test_a_mistake_in_the_table_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, f"[dose]\n{text}")
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_results_with_forced_routing_come_by_a_door_of_their_own(tmp_path: Path) -> None:
    for label in ("001", "001-r2", "001~hot-rank~0.5", "001-r2~spread~1", "001~mild~1", "001.partial"):
        (tmp_path / f"{label}.json").write_text(json.dumps({"mean_tpot_ms": 1.0}))
    found = analysis.of_folders("baseline", tmp_path)
    assert list(found.by_label) == ["001", "001-r2"]
    assert sorted(found.forced) == ["001-r2~spread~1", "001~hot-rank~0.5"]
