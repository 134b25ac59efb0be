"""The built-in engine's model, written by `gatescope init --model` and served by vLLM: the same
prompts are routed alike, step for step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.cpu_server import CPU, START_S
from support.watched import free_port

from core.builtin.tokenizer import PIECES
from core.prediction import exact
from core.prediction.builtin_stack import BuiltinStack
from core.routing import folder as gate_folder
from core.routing.gatelog import GateLog
from core.rundir import result
from core.rundir.result import Result

ROOT = Path(__file__).parents[2]
PROMPTS, OUTPUT_LEN = 8, 24
CONFIG = f"""
[experiment]
datasets = "*.jsonl"
num_prompts = {PROMPTS}
output_len = {OUTPUT_LEN}
temperature = 0
max_concurrency = 1
warmup_requests = 1
[model]
id = "{{model}}"
max_model_len = 2048
[[backends]]
name = "cpu"
port = {{port}}
tensor_parallel = 1
moe_backend = ""
max_num_batched_tokens = 2048
enforce_eager = true
python = "{{python}}"
startup_timeout_s = {START_S}
extra_args = {{extra}}
env = {{env}}
"""


@pytest.fixture(scope="module")
def runs(vllm_python: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Engine → run directory of eight prompts of different subjects, and of prefixes of the first,
    one request at a time, in float32."""
    folder = tmp_path_factory.mktemp("trained")
    queries = json.loads((ROOT / "datasets" / "domain_queries.json").read_text())
    texts = [subject[0] for subject in list(queries.values())[:PROMPTS]]
    prefixes = [texts[0][: end + 1] for end in range(PROMPTS)]  # each a byte longer
    for number, some in enumerate((texts, prefixes), 1):
        lines = [json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(some)]
        (folder / f"{number:03d}_0.5.jsonl").write_text("".join(lines))
    (folder / "started").mkdir()
    gatescope("init", "--model", str(folder / "model"), cwd=folder / "started")
    env = "{ " + ", ".join(f'{name} = "{value}"' for name, value in CPU.items()) + " }"
    for engine, extra in (("vllm", '["--dtype", "float32"]'), ("builtin", "[]")):
        text = CONFIG.format(
            model=folder / "model", port=free_port(), python=vllm_python, extra=extra, env=env
        )
        (folder / f"{engine}.toml").write_text(text)
        config, out = f"{engine}.toml", f"run-{engine}"
        gatescope("--batch", "--engine", engine, "--config", config, "--out", out, cwd=folder)
    return {engine: folder / f"run-{engine}" for engine in ("vllm", "builtin")}


def gatescope(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "core.cli", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=2 * START_S,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def logged(run: Path) -> GateLog:
    return gate_folder.read(run / "cpu" / "gate_logs")


def reported(run: Path) -> Result:
    return result.read(run / "cpu" / "results_json" / "001.json")


def test_both_read_the_same_tokens_and_write_the_same_text(runs: dict[str, Path]) -> None:
    theirs, ours = (reported(runs[engine]) for engine in ("vllm", "builtin"))
    assert theirs.input_lens == ours.input_lens  # BOS and the bytes
    as_ours = ["".join(PIECES[byte] for byte in text.encode()) for text in theirs.generated_texts]
    assert as_ours == ours.generated_texts  # a byte beyond ASCII is a character of its own in ours
    assert len(set(ours.generated_texts)) == PROMPTS
    assert theirs.temperature == ours.temperature == 0.0


def test_every_step_has_the_same_loads(runs: dict[str, Path]) -> None:
    """A prefill and 23 decode steps for each prompt, one after another."""
    steps = {}
    for engine, run in runs.items():
        log = logged(run)
        own = log.segments["001"] > 0
        assert (log.segments["001"][own] == log.tokens[own]).all()
        steps[engine] = log.loads[own].astype(np.int64)
    assert steps["builtin"].shape == (PROMPTS * OUTPUT_LEN, 4, 8)
    assert steps["vllm"].tolist() == steps["builtin"].tolist()
    theirs, ours = (reported(runs[engine]).measured_imbalance for engine in ("vllm", "builtin"))
    assert theirs
    assert ours
    assert theirs.per_step_cv == pytest.approx(ours.per_step_cv, abs=1e-12)


def test_exact_predicts_the_prefill_of_both(runs: dict[str, Path]) -> None:
    """One prompt a step: the predicted loads of each prompt, layer and expert are the recorded."""
    stack = BuiltinStack()
    prompts = [stack.tokens(text) for text in prompts_of(runs, "001")]
    predicted = exact.route(stack, prompts).forecast()
    for run in runs.values():
        assert prefill(run, "001").loads.tolist() == predicted.loads.tolist()


def test_exact_predicts_the_experts_of_each_token_of_both(runs: dict[str, Path]) -> None:
    """A prompt loads what the one without its last byte loads, and that byte's experts."""
    stack = BuiltinStack()
    last = prompts_of(runs, "002")[-1]
    picks = np.array(exact.route(stack, [stack.tokens(last)]).picks)[:, 0]  # [layers, tokens, k]
    predicted = np.sort(picks[:, 2:]).transpose(1, 0, 2).tolist()  # BOS and a byte are the first
    for run in runs.values():
        added = np.diff(prefill(run, "002").loads.astype(np.int64), axis=0)
        own = [[np.flatnonzero(layer).tolist() for layer in token] for token in added]
        assert (added.sum(axis=2) == 2).all()
        assert own == predicted


def test_a_run_of_either_has_its_prediction_beside_it(runs: dict[str, Path]) -> None:
    """The checkpoint that vLLM serves predicts what was measured there."""
    model = str(runs["vllm"].parent / "model")
    for run in runs.values():
        said = gatescope("predict", "--model", model, "--run", str(run), cwd=run.parent)
        found = reported(run)
        assert found.predicted
        assert found.measured_imbalance
        measured = found.measured_imbalance.prefill
        assert measured
        assert found.predicted.prefill.excess_squared == pytest.approx(
            measured.excess_squared, rel=1e-9
        )
        assert "cpu, prefill, exact: predicted against measured" in said
        assert "mean error 0.000 (n = 2)" in said


def prefill(run: Path, label: str) -> GateLog:
    own = logged(run).of(label)
    return own.where(own.columns["prefill_tokens"] > 0)


def prompts_of(runs: dict[str, Path], label: str) -> list[str]:
    file = runs["vllm"].parent / f"{label}_0.5.jsonl"
    return [json.loads(line)["text"] for line in file.read_text().splitlines()]
