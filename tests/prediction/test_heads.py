"""What is learned of a recorded run, and from which of its steps."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from core import cli
from core.builtin.tokenizer import encode
from core.errors import NoDataError
from core.prediction import exact, heads, recorded
from core.prediction.builtin_stack import BuiltinStack
from core.prediction.contexts import Contexts, grams
from core.prediction.recorded import Recorded
from core.routing import expected, repeats
from core.routing.expected import Planned
from core.stats import arrays

ROOT = Path(__file__).parents[2]
PROMPTS = 40
CONFIG = """
[experiment]
datasets = "*.jsonl"
num_prompts = {prompts}
output_len = {output}
max_concurrency = {at_once}
warmup_requests = 1
[[backends]]
name = "one"
port = 0
tensor_parallel = 1
max_num_batched_tokens = 2048
"""


def texts(first: int, count: int) -> list[str]:
    queries = json.loads((ROOT / "datasets" / "domain_queries.json").read_text())
    return [text for subject in queries.values() for text in subject[first : first + 2]][:count]


def run_directory(folder: Path, *, at_once: int, output: int) -> Path:
    rows = [json.dumps({"text": text}) + "\n" for text in texts(0, PROMPTS)]
    (folder / "001_0.5.jsonl").write_text("".join(rows))
    config = CONFIG.format(prompts=PROMPTS, at_once=at_once, output=output)
    (folder / "experiments.toml").write_text(config)
    done = subprocess.run(
        [sys.executable, "-m", "core.cli", "--batch", "--engine", "builtin", "--out", "run"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run"


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_directory(tmp_path_factory.mktemp("heads"), at_once=1, output=2)


def test_each_prompt_of_a_sequential_run_is_a_step_of_its_own(one_by_one: Path) -> None:
    found = recorded.read(one_by_one, encode)
    assert set(found.prompts) == {(tuple(encode(t)),) for t in texts(0, PROMPTS)}
    stack = BuiltinStack()
    routed = exact.route(stack, [step[0] for step in found.prompts]).forecast()
    assert found.loads.tolist() == routed.loads.tolist()


def test_prompts_that_ran_together_are_told_apart_by_their_lengths(tmp_path: Path) -> None:
    """Whatever the steps were, each that is used holds exactly the loads of its prompts."""
    found = recorded.read(run_directory(tmp_path, at_once=0, output=1), encode)
    stack = BuiltinStack()
    for step, loads in zip(found.prompts, found.loads, strict=True):
        assert loads.tolist() == exact.route(stack, step).forecast().loads.sum(axis=0).tolist()


def test_tokens_that_are_not_the_servers_are_not_used(one_by_one: Path) -> None:
    with pytest.raises(NoDataError, match="max_concurrency = 1"):
        recorded.read(one_by_one, lambda text: encode(text, bos=False))


def test_requests_that_are_damaged_are_named(
    one_by_one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not passed over: what would be learned of the rest is another thing."""
    shutil.copytree(one_by_one, tmp_path / "run")
    file = tmp_path / "run" / "one" / "requests" / "001.npz"
    columns = arrays.load(file)
    for damaged in (
        b"",
        b"PK\3\4",
        file.read_bytes()[:-40],
        file.read_bytes().replace(b"NUMPY", b"NUMPX"),
        {name: column for name, column in columns.items() if name != "ok"},
        columns | {"ok": columns["ok"][:-1]},
        columns | {"t_first_ns": np.array(1)},
    ):
        if isinstance(damaged, bytes):
            file.write_bytes(damaged)
        else:
            np.savez(file, allow_pickle=False, **damaged)
        given = ["--model", "builtin", "--mode", "table", "--learn", str(tmp_path / "run")]
        file_of_prompts = str(one_by_one.parent / "001_0.5.jsonl")
        assert cli.main(["predict", *given, file_of_prompts]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"gatescope: {file}: not as gatescope writes it: ")


def test_calibrated_predicts_the_excess_of_other_texts(
    one_by_one: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "002_0.5.jsonl"
    others = texts(10, PROMPTS)
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in others))
    given = ["--model", "builtin", "--mode", "calibrated", "--learn", str(one_by_one)]
    assert cli.main(["predict", *given, "--json", str(file)]) == 0
    out, err = capfd.readouterr()
    assert f"learned from {PROMPTS} steps" in err
    (found,) = json.loads(out).values()
    stack = BuiltinStack()
    prompts = [stack.tokens(text) for text in others]
    routed = replace(exact.route(stack, prompts).forecast(), repeats=repeats.of(prompts))
    measured = expected.prefill(routed, Planned()).excess_squared
    low, high = found["prefill"]["run_interval"]
    assert measured
    assert low < measured < high
    assert found["prefill"]["excess_squared"] == pytest.approx(measured, abs=0.02)


@pytest.mark.parametrize(
    "given",
    [
        ["--mode", "table"],
        ["--mode", "calibrated"],
        ["--mode", "table", "--learn", "r", "--layers", "1"],
    ],
)
def test_modes_and_what_they_need(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", "--model", "builtin", *given, "none.jsonl"]) == 2
    assert "--mode" in capsys.readouterr().err


def test_a_router_that_looks_at_the_token_alone_is_learned() -> None:
    """Token t picks expert t of 4, whatever precedes it; 60 steps of 30 tokens."""
    rng = np.random.default_rng(0)
    steps = [tuple(rng.choice(4, 30, p=rng.dirichlet(np.ones(4))).tolist()) for _ in range(60)]
    loads = np.array([[np.bincount(step, minlength=4)] for step in steps], np.float64)
    of = Recorded(tuple((step,) for step in steps[:50]), loads[:50], 1, (3,))
    learned = heads.learn(of, None)
    assert learned.error() < 0.04
    predicted = learned.predict(steps[50:])
    np.testing.assert_allclose(predicted.loads, loads[50:], atol=0.6)
    assert predicted.layer_numbers == (3,)


def test_contexts_are_counted_with_what_precedes_them() -> None:
    counts = Contexts.seen_in([[1, 2, 1, 2]]).count([[1, 2, 1, 2], [2, 9]])
    assert [own.sum(axis=1).tolist() for own in counts] == [[4, 1], [4, 0], [4, 0]]
    one, two, three = grams(counts, counts)
    assert one.tolist() == [[8, 2], [2, 1]]
    assert (two.tolist(), three.tolist()) == ([[6, 0], [0, 0]], [[4, 0], [0, 0]])
