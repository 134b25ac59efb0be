"""Doses in the plan, in results, and kept apart from natural runs."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from support import undrawn
from support.place import Place
from support.synthetic import as_log, routed

from core.analysis import results as analysis
from core.backends import choice, forcing
from core.errors import BackendError, ConfigError
from core.experiment import config, dose, plan
from core.experiment.config import Config
from core.experiment.dose import Dose, Replay
from core.experiment.forcing import with_doses
from core.experiment.tables import Forcing
from core.recorder.gatescope_recorder import dose as forced
from core.recorder.gatescope_recorder.dose import Course, Cut
from core.recorder.gatescope_recorder.order import DoseError, Order
from core.routing.forced import Check
from core.routing.gatelog import GateLog

BACKENDS = '[[backends]]\nname = "baseline"\n[[backends]]\nname = "all2all"\n'


def a_dose(label: str) -> Dose | None:
    found = dose.of_label(label)
    assert not isinstance(found, Replay)
    return found


def loaded(folder: Path, text: str) -> Config:
    """Two backends, two datasets."""
    for name in ("001_0.1", "002_0.2"):
        (folder / f"{name}.jsonl").write_text('{"id": "a", "text": "hello"}\n')
    (folder / "experiments.toml").write_text(
        f'[experiment]\ndatasets = "*.jsonl"\n{text}\n{BACKENDS}'
    )
    return config.load(folder / "experiments.toml")


def test_a_label_names_the_dose_and_is_read_back() -> None:
    hot = Dose("hot-rank", 0.5)
    assert hot.label == "hot-rank~0.5"
    assert plan.label("001", 1, hot) == "001~hot-rank~0.5"
    assert plan.label("001", 2, hot) == "001-r2~hot-rank~0.5"
    assert dose.of_label("001-r2~hot-rank~0.5") == hot
    assert dose.of_label("001-r2") is None


def test_every_dataset_runs_naturally_and_at_every_dose_in_one_shuffled_order(
    tmp_path: Path,
) -> None:
    made = plan.make(
        loaded(
            tmp_path,
            'repeats = 2\n[dose]\nlevels = [0, 1.5]\npatterns = ["hot-experts", "rotating"]',
        )
    )
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
    assert with_doses(without, [], []).dose is None
    assert with_doses(without, [0, 2.5], []).dose == Forcing(levels=[0, 2.5])
    table = replace(without, dose=Forcing(levels=[1.0], rotate_steps=8))
    assert with_doses(table, [], ["spread"]).dose == Forcing(
        levels=[1.0], patterns=["spread"], rotate_steps=8
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "levels = [0, -1]",
            "[dose], levels, item 2: expected a CV of expert load, a number from 0 to 100, got -1",
        ),
        (
            'patterns = ["hot"]',
            '[dose], patterns, item 1: expected "few-experts" or "hot-experts" or "hot-rank" or',
        ),
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
    for label in (
        "001",
        "001-r2",
        "001~hot-rank~0.5",
        "001-r2~spread~1",
        "001~mild~1",
        "001.partial",
    ):
        (tmp_path / f"{label}.json").write_text(json.dumps({"mean_tpot_ms": 1.0}))
    found = analysis.of_folders("baseline", tmp_path)
    assert list(found.by_label) == ["001", "001-r2"]
    assert sorted(found.forced) == ["001-r2~spread~1", "001~hot-rank~0.5"]


# --- before anything starts ---


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (
            "levels = [1.8]",
            "hot-experts~1.8: a CV of 1.8 is unreachable with 2 hot of 8 experts, 2 per token:"
            " 1.732 is the",
        ),
        ('patterns = ["hot-rank"]', "hot-rank~0: hot-rank needs 2 or more expert-parallel ranks"),
    ],
)
def test_what_cannot_be_forced_stops_the_start(tmp_path: Path, table: str, said: str) -> None:
    one = loaded(tmp_path, f"[dose]\n{table}")
    one = replace(one, backends=tuple(replace(b, tensor_parallel=1) for b in one.backends))
    assert one.dose
    with pytest.raises(ConfigError, match=r"experiments.toml: \[dose\]: ") as caught:
        choice.check_doses("builtin", one.backends, one, one.dose.doses)
    assert said in str(caught.value)


def test_backends_share_the_ranks_that_a_hot_rank_is_one_of(tmp_path: Path) -> None:
    one = loaded(tmp_path, "")
    baseline, all2all = one.backends
    expert = replace(all2all, tensor_parallel=1, data_parallel=2, expert_parallel=True)
    assert forcing.ranks([baseline, expert]) == 2
    assert forcing.ranks([baseline]) == 4
    with pytest.raises(DoseError, match="backends of 2 and 8 expert-parallel ranks"):
        forcing.ranks([expert, replace(expert, data_parallel=8)])


def test_a_vllm_whose_router_cannot_be_reached_is_refused_before_it_is_started(
    tmp_path: Path,
) -> None:
    package = tmp_path / "vllm"
    (package / "entrypoints/openai").mkdir(parents=True)
    moe = package / "model_executor/layers/fused_moe"
    moe.mkdir(parents=True)
    for file, text in (("__init__.py", ""), ("_version.py", "__version__ = version = '0.11.2'\n")):
        (package / file).write_text(text)
    (moe / "layer.py").write_text("def select_experts(): ...\n")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    one = loaded(tmp_path, "[dose]")
    backend = replace(one.backends[0], python=str(python))
    with pytest.raises(
        BackendError, match=r"vLLM 0\.11\.2 has no router .* forced routing needs 0\.15 or newer"
    ):
        choice.check_doses("vllm", [backend], one, [Dose("hot-experts", 1)])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--dose", "much"), "expected CVs of expert load such as 0,0.25,1.5, got 'much'"),
        (
            ("--dose", "1", "--pattern", "hot"),
            "expected some of hot-experts, hot-rank, spread, rotating, few-experts, got",
        ),
        (("--dose", "1.8"), "1.732 is the most; take other levels or patterns"),
        (
            ("--resume", "made", "--dose", "1"),
            "--resume runs what was selected at the start; leave out",
        ),
    ],
)
def test_a_wrong_option_starts_nothing(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    place = Place(tmp_path)
    done = place.gatescope("--batch", "--out", "made", *arguments)
    assert (done.returncode, said in done.stderr, place.made.exists()) == (2, True, False), (
        done.stderr
    )


# --- what the gate log says ---

ORDER = Order(("hot-experts~0.5", "rotating~0.5", "hot-experts~0"), rotate_steps=4)
HALF = np.array([forced.weight_for(0.5, 2, 8, 2)] * 2 + [1.0] * 6)


def of_weights(
    weights: list[float] | np.ndarray[tuple[int], np.dtype[np.float64]], seed: int = 0
) -> np.ndarray:
    """Loads of 200 steps of 30 independent tokens, 4 layers."""
    return routed(np.random.default_rng(seed), [30] * 200, 4, np.asarray(weights, np.float64))


def turning(weights: np.ndarray) -> np.ndarray:
    """The same, with the hot set moved by two experts every four steps."""
    loads = of_weights(weights)
    return np.stack([np.roll(step, n // 4 * 2, axis=-1) for n, step in enumerate(loads)])


def against(wanted: Dose | None, label: str, *parts: GateLog) -> str:
    check = Check(wanted, label, ORDER)
    for part in parts:
        check.add(part)
    return check.wrong()


@pytest.mark.parametrize(
    ("wanted", "loads", "fits"),
    [
        (Dose("hot-experts", 0.5), of_weights(HALF), True),
        (Dose("hot-experts", 0), of_weights([1.0] * 8), True),
        (Dose("hot-experts", 0.5), of_weights([1.0] * 8), False),
        (Dose("hot-experts", 0), of_weights([1.4] + [1.0] * 7), False),
        (Dose("hot-experts", 0.5), of_weights(HALF[::-1]), False),  # as much heat, elsewhere
        (Dose("rotating", 0.5), turning(HALF), True),
        (Dose("rotating", 0.5), turning(np.ones(8)), False),
    ],
)
def test_a_run_that_was_not_routed_as_requested_is_told(
    wanted: Dose, loads: np.ndarray, fits: bool
) -> None:
    label = f"001~{wanted.label}"
    log = as_log(loads, label)
    wrong = against(wanted, label, log, log)
    assert (wrong == "") == fits, wrong
    assert (
        fits
        or f"requested forced routing: {wanted.pattern}, CV {wanted.level:g}; the recorded expert"
        in wrong
    )


def test_tokens_of_another_dose_in_a_step_fail_both_runs() -> None:
    loads = of_weights(HALF)
    log = as_log(loads, "001~hot-experts~0.5")
    beside = np.where(np.arange(200) < 3, 1, 0)
    mixed = GateLog(log.loads, log.columns, {**log.segments, "002": beside}, 2)
    for label in ("001~hot-experts~0.5", "002"):
        said = against(a_dose(label), label, mixed)
        assert (
            said == "3 steps with tokens of another dose (target imbalance) too: routed naturally"
        )
    same = GateLog(log.loads, log.columns, {**log.segments, "002~hot-experts~0.5": beside}, 2)
    assert against(Dose("hot-experts", 0.5), "001~hot-experts~0.5", same) == ""


def test_a_run_without_steps_in_the_log_is_not_confirmed() -> None:
    said = against(Dose("hot-experts", 0.5), "001~hot-experts~0.5")
    assert said == "forced routing is not confirmed: the gate log holds no step of this run"


def test_a_step_that_mixes_doses_or_asks_for_an_unknown_one_is_routed_naturally() -> None:
    course = Course(ORDER, 8, 2, 4, 64)
    assert course.next({"hot-experts~0.5", ""}, 8) is None
    assert course.next({"spread~1"}, 8) is None
    cut = course.next({"hot-experts~0.5"}, 8)
    assert isinstance(cut, Cut)
    assert cut.start == 16  # the tokens that went before


# --- the whole way, on the built-in engine ---


def test_recorded_cvs_are_those_that_were_asked_for_and_natural_runs_do_not_change(
    tmp_path: Path,
) -> None:
    """One request at a time: which requests share a step must not change the last bits of anyone's
    text."""
    place = Place(tmp_path, num_prompts=14, max_concurrency=1, shuffle=True)
    place.write_dataset(1, [f"{i:04d} of a longer prompt; " * 19 for i in range(14)])
    common = ("--batch", "--backend", "baseline", "--only", "001")
    doses = ("--dose", "0.25,1.5", "--pattern", "spread")
    for out, more in (("made", doses), ("plain", ())):
        done = place.gatescope(*common, "--out", out, *more)
        assert done.returncode == 0, done.stderr
        assert ("forced routing" in done.stderr) == bool(more)
    results = {
        p.stem: json.loads(p.read_bytes()) for p in place.made.glob("baseline/results_json/*.json")
    }
    assert sorted(results) == ["001", "001~spread~0.25", "001~spread~1.5"]
    for label, result in results.items():
        measured, wanted = result["measured_imbalance"], a_dose(label)
        assert measured["tokens"] == result["gate_log"]["tokens_due"] > 6_000
        assert result["forced_routing"] == (
            wanted and {"pattern": wanted.pattern, "level": wanted.level}
        )
        if wanted:
            assert measured["aggregated_cv"] == pytest.approx(wanted.level, rel=0.02)
            assert set(np.argsort(measured["expert_loads"])[-2:]) == {0, 4}
    mapping = json.loads((place.made / "baseline_real_imbalance.json").read_bytes())
    assert list(mapping) == ["gates_logs_01"]
    plain = json.loads((tmp_path / "plain/baseline/results_json/001.json").read_bytes())
    for key in ("generated_texts", "forced_routing"):
        assert results["001"][key] == plain[key]
    assert (
        results["001"]["measured_imbalance"]["expert_loads"]
        == plain["measured_imbalance"]["expert_loads"]
    )
    assert results["001~spread~1.5"]["generated_texts"] != plain["generated_texts"]
    report = undrawn.report(place.made)
    assert "--only 001 --backend baseline --dose 0.25,1.5 --pattern spread\n" in report
