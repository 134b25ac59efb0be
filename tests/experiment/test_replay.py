"""Replayed routing: in the plan, from the command line to the gate log, and kept apart."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from support import undrawn
from support.gate_logs import write_layers
from support.place import PROMPTS, Place
from support.synthetic import routed, write_log

from core.backends import choice
from core.errors import ConfigError
from core.experiment import config, dose, plan
from core.experiment.config import Config
from core.experiment.dose import Replay
from core.experiment.forcing import with_doses
from core.experiment.tables import Forcing
from core.routing import folder as gate_folder

TOKENS = len(PROMPTS)


def loaded(folder: Path, text: str) -> Config:
    for name in ("001_0.1", "002_0.2"):
        (folder / f"{name}.jsonl").write_text('{"id": "a", "text": "hello"}\n')
    backend = '[[backends]]\nname = "baseline"\n'
    (folder / "experiments.toml").write_text(
        f'[experiment]\ndatasets = "*.jsonl"\n{text}\n{backend}'
    )
    return config.load(folder / "experiments.toml")


def logs(folder: Path, *, layers: int = 4, experts: int = 8, steps: int = 40) -> Path:
    """Upstream's layout: two datasets, steps of as many tokens as there are prompts."""
    for number, heat in ((1, 1.0), (7, 9.0)):
        weights = np.array([heat] * 2 + [1.0] * (experts - 2))
        made = routed(np.random.default_rng(number), [TOKENS] * steps, layers, weights)
        by_layer = made.transpose(1, 0, 2).astype(float).tolist()
        write_layers(folder / f"gates_logs_{number:02d}", by_layer, [TOKENS] * steps)
    return folder


def test_a_label_names_the_recorded_run_and_is_read_back() -> None:
    again = Replay("001-r2")
    assert plan.label("007", 2, again) == "007-r2~replay~001-r2"
    assert dose.of_label("baseline/007-r2~replay~001-r2") == again
    assert dose.of_label("007~replay~001-try2") == Replay("001")
    assert dose.is_replay("007~replay~001")
    assert not dose.is_replay("007~hot-rank~0.5")
    assert plan.dataset_of("baseline/007-r2~replay~001-r2") == "007"


def test_a_recorded_run_is_replayed_with_its_own_dataset_else_with_each(tmp_path: Path) -> None:
    one = replace(loaded(tmp_path, ""), replays=("001", "001-r2", "009"))
    labels = Counter(r.label for r in plan.make(one).runs)
    assert labels == Counter(
        [
            "001",
            "001~replay~001",
            "001~replay~001-r2",
            "001~replay~009",
            "002",
            "002~replay~009",
        ]
    )
    alone = [r.label for r in plan.make(one, ["002"]).runs]
    assert sorted(alone) == ["002", "002~replay~001", "002~replay~001-r2", "002~replay~009"]
    assert all(r.imposed == dose.of_label(r.label) for r in plan.make(one).runs)


def test_logs_alone_bring_no_levels_and_beside_levels_both_are_run(tmp_path: Path) -> None:
    place = str(tmp_path / "logs")
    assert loaded(tmp_path, '[dose]\nreplay = "logs"').dose == Forcing(levels=[], replay=place)
    both = loaded(tmp_path, '[dose]\nreplay = "logs"\nlevels = [0]').dose
    assert both == Forcing(levels=[0], replay=place)
    none, logs = loaded(tmp_path, ""), Path(place)
    assert with_doses(none, [], [], logs).dose == Forcing(levels=[], replay=place)
    assert with_doses(none, [1], [], logs).dose == Forcing(levels=[1], replay=place)
    table = replace(none, dose=Forcing(levels=[0.5]))
    assert with_doses(table, [], [], logs).dose == Forcing(levels=[0.5], replay=place)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((2, 8, 2), "recorded were 2 layers, this model has 4"),
        ((4, 16, 2), "recorded were 16 experts a layer with top-2, this model has 8 with top-2"),
    ],
)
def test_logs_of_another_shape_stop_the_start(
    tmp_path: Path, shape: tuple[int, int, int], said: str
) -> None:
    layers, experts, top_k = shape
    with pytest.raises(ConfigError, match=f"replay: {said}"):
        choice.check_recording(
            "builtin", loaded(tmp_path, ""), layers=layers, experts=experts, top_k=top_k
        )


def test_a_models_config_says_how_many_layers_a_log_needs(tmp_path: Path) -> None:
    model = {"num_hidden_layers": 32, "num_local_experts": 8, "num_experts_per_tok": 2}
    (tmp_path / "config.json").write_text(json.dumps(model))
    one = loaded(tmp_path, f'[model]\nid = "{tmp_path}"')
    choice.check_recording("vllm", one, layers=32, experts=8, top_k=2)
    with pytest.raises(ConfigError, match="recorded were 31 layers, this model has 32"):
        choice.check_recording("vllm", one, layers=31, experts=8, top_k=2)
    (tmp_path / "config.json").write_text(json.dumps({**model, "first_k_dense_replace": 1}))
    choice.check_recording("vllm", one, layers=31, experts=8, top_k=2)


def test_wrong_logs_start_nothing(tmp_path: Path) -> None:
    place = Place(tmp_path)
    logs(tmp_path / "narrow", layers=2)
    for given, said in (("nowhere", "not a folder of gate logs"), ("narrow", "this model has 4")):
        done = place.gatescope("--batch", "--out", "made", "--replay", given)
        assert (done.returncode, said in done.stderr, place.made.exists()) == (2, True, False)


# --- the whole way, on the built-in engine ---


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Dataset 001 with its own routing, at level 0, and with the recorded runs 001 and 007, of
    which 007 is hot."""
    place = Place(tmp_path_factory.mktemp("replayed"), output_len=24)
    given = logs(place.folder / "logs")
    common = ("--batch", "--out", "made", "--only", "001", "--dose", "0")
    done = place.gatescope(*common, "--replay", str(given), "--pattern", "hot-experts")
    assert done.returncode == 0, done.stderr
    assert "001~replay~007 replayed routing" in done.stderr
    assert "replayed routing: means of each recorded run" in done.stderr
    return place


def result(place: Place, backend: str, label: str) -> dict[str, Any]:
    return dict(json.loads((place.made / backend / "results_json" / f"{label}.json").read_bytes()))


@pytest.mark.parametrize("backend", ["baseline", "all2all"])
@pytest.mark.parametrize("source", ["001", "007"])
def test_the_recorded_loads_are_the_logs_count_for_count(
    replayed: Place, backend: str, source: str
) -> None:
    """Every decode step of as many tokens as the log's has the loads of the log's next one."""
    label = f"001~replay~{source}"
    own = gate_folder.read(replayed.made / backend / "gate_logs").of(label)
    decode = own.where(own.columns["prefill_tokens"] == 0)
    file = replayed.folder / "logs" / f"gates_logs_{int(source):02d}"
    log = np.stack(
        [json.loads((file / f"gate_logs_{n}.json").read_bytes())["expert_loads"] for n in range(4)],
        axis=1,
    )
    same = decode.tokens == TOKENS
    assert same.sum() >= 10
    first = int(same.argmax())
    place = int(next(n for n, step in enumerate(log) if np.array_equal(step, decode.loads[first])))
    run = int((~same[first:]).argmax()) or int(same[first:].sum())
    assert np.array_equal(decode.loads[first : first + run], log[place : place + run])
    steps = result(replayed, backend, label)["replayed_routing"]
    assert steps["decode"]["exact"] >= run
    assert steps["decode"]["unproven"] == 0
    assert sum(steps["decode"].values()) == len(decode.tokens)
    assert (steps["layers"], steps["recorded_layers"], steps["source"]) == (4, 4, source)


def test_replays_are_in_no_figure_of_natural_or_forced_runs(replayed: Place) -> None:
    made = replayed.made
    heads = {
        name: [line.split(",")[1] for line in (made / name).read_text().splitlines()[1:]]
        for name in ("summary.csv", "summary-forced.csv", "summary-replayed.csv")
    }
    assert heads == {
        "summary.csv": ["001"] * 2,
        "summary-forced.csv": ["001~hot-experts~0"] * 2,
        "summary-replayed.csv": ["001~replay~001", "001~replay~007"] * 2,
    }
    assert list(json.loads((made / "baseline_real_imbalance.json").read_bytes())) == [
        "gates_logs_01"
    ]
    forced = json.loads((made / "findings.json").read_bytes())["forced"]
    assert {curve["pattern"] for curve in forced["curves"]} <= {"hot-experts"}
    one = result(replayed, "baseline", "001~replay~007")
    assert (one["forced_routing"], one["energy_j"]) == (None, None)
    assert one["energy_reason"] == "NVML shows no GPU that this server uses"
    assert result(replayed, "baseline", "001")["replayed_routing"] is None


def test_the_report_has_a_section_of_its_own_and_the_command(replayed: Place) -> None:
    report = undrawn.report(replayed.made)
    section = report.partition("(replayed routing)")[2].partition("\n## ")[0]
    assert "| baseline | 001 | 1 |" in section
    assert "baseline/001~replay~007: decode: " in section
    logs = replayed.folder / "logs"
    assert f"--replay {logs} --dose 0 --pattern hot-experts\n" in report


def test_prompts_are_replayed_too_and_the_logs_may_be_gone_once_it_has_begun(
    replayed: Place,
) -> None:
    """One request at a time, so that the steps have the sizes of a log that is made for them."""
    text = replayed.config.replace("output_len = 24", "output_len = 6\nmax_concurrency = 1")
    (replayed.folder / "one.toml").write_text(text)
    lens = result(replayed, "baseline", "001")["input_lens"]
    tokens = [n for prompt in lens for n in (prompt, 1, 1, 1, 1, 1)]
    loads = routed(np.random.default_rng(2), tokens, 4, np.ones(8))
    source, again = replayed.folder / "source", replayed.folder / "again"
    prefill = [n if n > 1 else 0 for n in tokens]
    source.mkdir()
    write_log(source / "dp0_pp0.gatelog", loads, prefill=prefill)
    common = ("--batch", "--config", "one.toml", "--backend", "baseline", "--only", "001")
    done = replayed.gatescope(*common, "--out", "again", "--replay", "source")
    assert done.returncode == 0, done.stderr
    file = again / "baseline/results_json/001~replay~001.json"
    made = json.loads(file.read_bytes())["replayed_routing"]
    none = {"added": 0, "thinned": 0, "natural": 0, "unproven": 0}
    assert made["decode"] == {"exact": TOKENS * 5, **none}
    assert made["prefill"] == {"exact": TOKENS, **none}
    own = gate_folder.read(again / "baseline/gate_logs").of("001~replay~001")
    assert np.array_equal(own.loads, loads)
    source.rename(replayed.folder / "elsewhere")
    file.unlink()
    assert replayed.gatescope("--batch", "--resume", "again").returncode == 0
    assert file.exists()
