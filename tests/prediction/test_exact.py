"""Exact predictions against what the built-in engine records of the same prompts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from core import cli
from core.prediction import exact
from core.prediction.builtin_stack import BuiltinStack
from core.prediction.exact import Routed
from core.routing import expected, repeats
from core.routing import folder as gate_folder
from core.routing.expected import ExpectedPhase, Planned
from core.routing.gatelog import GateLog
from core.rundir import result

ROOT = Path(__file__).parents[2]
SUBJECTS = 6
LETTERS = "abcdefghijkl"  # each prompt one of them, over and over
CONFIG = """
[experiment]
datasets = "*.jsonl"
output_len = 1
max_concurrency = 1
warmup_requests = 0
[[backends]]
name = "{name}"
port = 0
tensor_parallel = 1
max_num_batched_tokens = {tokens}
max_num_seqs = 1
"""


def texts() -> list[str]:
    queries = json.loads((ROOT / "datasets" / "domain_queries.json").read_text())
    return [subject[3] for subject in list(queries.values())[:SUBJECTS]]


def repetitive() -> list[str]:
    return [letter * 120 for letter in LETTERS]


@pytest.fixture(scope="module")
def routed() -> Routed:
    stack = BuiltinStack()
    return exact.route(stack, [stack.tokens(text) for text in texts()])


def recorded(folder: Path, tokens: int, *datasets: list[str]) -> Path:
    """The run directory of datasets 001, 002 …: prompts one after another, `tokens` a step."""
    for number, some in enumerate(datasets, 1):
        lines = [json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(some)]
        (folder / f"{number:03d}_0.5.jsonl").write_text("".join(lines))
    (folder / "experiments.toml").write_text(CONFIG.format(name="one", tokens=tokens))
    done = subprocess.run(
        [sys.executable, "-m", "core.cli", "--batch", "--engine", "builtin", "--out", "run"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run"


def own_steps(run: Path) -> GateLog:
    return gate_folder.read(run / "one" / "gate_logs").of("001")


def test_every_token_has_the_experts_that_were_recorded(tmp_path: Path, routed: Routed) -> None:
    """The engine runs one token a step, so each step's loads are one token's picks."""
    loads = own_steps(recorded(tmp_path, 1, texts())).loads
    picks = np.array([np.concatenate(layer) for layer in routed.picks])  # [layers, tokens, k]
    assert loads.shape == (picks.shape[1], 4, 8)
    theirs = [[np.flatnonzero(layer).tolist() for layer in step] for step in loads]
    ours = [[sorted(layer) for layer in token] for token in picks.transpose(1, 0, 2).tolist()]
    assert ours == theirs


def test_the_excess_is_the_measured_one_where_each_prompt_is_a_step(
    tmp_path: Path, routed: Routed
) -> None:
    run = recorded(tmp_path, 2048, texts(), repetitive())
    assert own_steps(run).loads.tolist() == routed.forecast().loads.tolist()
    for label, some in (("001", texts()), ("002", repetitive())):
        found = result.read(run / "one" / "results_json" / f"{label}.json").measured_imbalance
        assert found
        measured, predicted = found.prefill, predict(some)
        assert measured
        assert predicted.excess_squared == pytest.approx(measured.excess_squared, rel=1e-9)
        assert predicted.noise_floor == pytest.approx(measured.noise_floor, rel=1e-9)
        assert predicted.excess_cv == pytest.approx(measured.excess_cv)
        assert (measured.excess_cv is None) == (label == "001")


def test_a_prediction_stands_beside_what_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = recorded(tmp_path, 2048, texts(), repetitive())
    files = [run / "one" / "results_json" / f"00{n}.json" for n in (1, 2)]
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
    assert said.startswith(
        "one, prefill, exact: predicted against measured excess CV²: no order (n"
    )
    assert "mean error 0.000 (n = 2)" in said
    assert cli.main(["report", str(run)]) == 0
    assert said.strip() in (run / "report.md").read_text().replace("\\", "")
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
