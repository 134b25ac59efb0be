"""Exact predictions against what the built-in engine records of the same prompts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.predicted import queries, run

from core import cli
from core.builtin.tokenizer import encode
from core.prediction import exact, recorded
from core.prediction.builtin_stack import BuiltinStack
from core.prediction.exact import Routed
from core.routing import expected, repeats
from core.routing import folder as gate_folder
from core.routing.expected import ExpectedPhase, Planned
from core.routing.gatelog import GateLog
from core.rundir import result

SUBJECTS = 6
LETTERS = "abcdefgh"  # each prompt one of them, over and over


def texts() -> list[str]:
    return queries(3)[:SUBJECTS]


def repetitive() -> list[str]:
    return [letter * 60 for letter in LETTERS]


@pytest.fixture(scope="module")
def routed() -> Routed:
    stack = BuiltinStack()
    return exact.route(stack, [stack.tokens(text) for text in texts()])


@pytest.fixture(scope="module")
def recorded_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of both datasets, and two more: `token` runs one token a step, `prompt` one prompt."""
    datasets = [texts(), repetitive(), queries(4)[:2], queries(5)[:2]]
    single = {"max_num_seqs": 1, "max_num_batched_tokens": 1}
    keys = {"token": single, "prompt": {"max_num_seqs": 1}, "several": {}}
    return run(tmp_path_factory.mktemp("exact"), datasets, 1, **keys)


def own_steps(run: Path, backend: str) -> GateLog:
    return gate_folder.read(run / backend / "gate_logs").of("001")


def test_every_token_has_the_experts_that_were_recorded(recorded_run: Path, routed: Routed) -> None:
    """The engine runs one token a step, so each step's loads are one token's picks."""
    loads = own_steps(recorded_run, "token").loads
    picks = np.array([np.concatenate(layer) for layer in routed.picks])  # [layers, tokens, k]
    assert loads.shape == (picks.shape[1], 4, 8)
    theirs = [[np.flatnonzero(layer).tolist() for layer in step] for step in loads]
    ours = [[sorted(layer) for layer in token] for token in picks.transpose(1, 0, 2).tolist()]
    assert ours == theirs


def test_the_excess_is_the_measured_one_where_each_prompt_is_a_step(
    recorded_run: Path, routed: Routed
) -> None:
    assert own_steps(recorded_run, "prompt").loads.tolist() == routed.forecast().loads.tolist()
    for label, some in (("001", texts()), ("002", repetitive())):
        file = recorded_run / "prompt" / "results_json" / f"{label}.json"
        found = result.read(file).measured_imbalance
        assert found
        measured, predicted = found.prefill, predict(some)
        assert measured
        assert predicted.excess_squared == pytest.approx(measured.excess_squared, rel=1e-9)
        assert predicted.noise_floor == pytest.approx(measured.noise_floor, rel=1e-9)
        assert predicted.excess_cv == pytest.approx(measured.excess_cv)
        assert (measured.excess_cv is None) == (label == "001")


def test_a_prediction_stands_beside_what_was_measured(
    recorded_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = recorded_run
    files = [run / "prompt" / "results_json" / f"00{n}.json" for n in (1, 2)]
    before = [json.loads(file.read_bytes()) for file in files]
    assert cli.main(["predict", "--model", "builtin", "--run", str(run)]) == 0
    said = capsys.readouterr().out
    for old, file in zip(before, files, strict=True):
        new = json.loads(file.read_bytes())
        own = new.pop("predicted")
        assert new == {key: value for key, value in old.items() if key != "predicted"}
        measured = old["measured_imbalance"]["prefill"]["excess_squared"]
        assert own["prefill"]["excess_squared"] == pytest.approx(measured, rel=1e-9)
        assert own["decode_reason"].startswith("--learn RUN_DIR")
    (line,) = (line for line in said.splitlines() if line.startswith("prompt, "))
    assert line.startswith("prompt, prefill, exact: predicted against measured excess CV²: ")
    assert "mean error 0.000 (n = 4)" in line
    assert cli.main(["report", str(run)]) == 0
    assert line in (run / "report.md").read_text().replace("\\", "")
    assert (run / "graphs" / "prediction.png").is_file()


def test_the_null_allows_for_tokens_that_repeat() -> None:
    """Bytes repeat in any text, so a fair router's steps differ: ordinary text shows no excess,
    which without that allowance it would."""
    ordinary = predict(texts())
    assert ordinary.excess_cv is None
    assert str(ordinary.excess_cv_reason).startswith("at the noise floor: excess² -0.")
    stack = BuiltinStack()
    routed = exact.route(stack, [stack.tokens(text) for text in texts()])
    unalike = expected.prefill(routed.forecast(), Planned())
    assert unalike.excess_cv
    assert unalike.excess_cv_interval
    assert unalike.excess_cv_interval[0] < unalike.excess_cv


def test_steps_of_several_prompts_hold_their_loads(recorded_run: Path) -> None:
    """Whatever the steps were, each that is learned from has exactly the loads of its prompts."""
    found = recorded.read(recorded_run, encode)
    assert any(len(step) > 1 for step in found.prompts)
    assert len(found.datasets) == 4
    stack = BuiltinStack()
    for step, loads in zip(found.prompts, found.loads, strict=True):
        assert loads.tolist() == exact.route(stack, step).forecast().loads.sum(axis=0).tolist()


def predict(some: list[str]) -> ExpectedPhase:
    stack = BuiltinStack()
    prompts = [stack.tokens(text) for text in some]
    forecast = replace(exact.route(stack, prompts).forecast(), repeats=repeats.of(prompts))
    return expected.prefill(forecast, Planned())


def test_layers_stop_early_and_keep_their_numbers(routed: Routed) -> None:
    stack = BuiltinStack()
    told: list[int] = []
    some = exact.route(
        stack,
        [stack.tokens(text) for text in texts()],
        range(1, 3),
        lambda done, layers, seconds: told.append(done),
    )
    assert told == [1, 2, 3]
    assert some.layer_numbers == (1, 2)
    assert some.forecast().loads.tolist() == routed.forecast().loads[:, 1:3].tolist()
