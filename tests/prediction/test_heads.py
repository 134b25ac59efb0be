"""What is learned of a recorded run, and from which of its steps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.predicted import queries, run

from core import cli
from core.builtin.tokenizer import encode
from core.errors import NoDataError
from core.prediction import exact, heads, recorded
from core.prediction.builtin_stack import BuiltinStack
from core.prediction.contexts import Contexts, grams
from core.prediction.recorded import Recorded
from core.routing import expected, repeats
from core.routing.expected import Checked, Planned
from core.stats import arrays
from core.stats.arrays import Floats

DATASETS = 4


def texts(first: int) -> list[str]:
    return queries(first)[:20] + queries(first + 1)[:20]


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parts = [texts(0)[place::DATASETS] for place in range(DATASETS)]
    return run(tmp_path_factory.mktemp("heads"), parts, 2, one={"max_num_seqs": 1})


def test_each_prompt_of_a_sequential_run_is_a_step_of_its_own(one_by_one: Path) -> None:
    found = recorded.read(one_by_one, encode)
    assert set(found.prompts) == {(tuple(encode(text)),) for text in texts(0)}
    assert sorted(place for own in found.datasets for place in own) == list(range(40))
    stack = BuiltinStack()
    routed = exact.route(stack, [step[0] for step in found.prompts]).forecast()
    assert found.loads.tolist() == routed.loads.tolist()


def test_parts_of_a_lone_dataset_stand_for_datasets(
    one_by_one: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = [run for run in recorded._runs(one_by_one) if run[1] == "001"]
    monkeypatch.setattr(recorded, "_runs", lambda _: first)
    assert recorded.read(one_by_one, encode).datasets == ((0, 1, 2), (3, 4, 5), (6, 7), (8, 9))


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
    others = texts(10)
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in others))
    given = ["--model", "builtin", "--mode", "calibrated", "--learn", str(one_by_one)]
    assert cli.main(["predict", *given, "--json", str(file)]) == 0
    out, err = capfd.readouterr()
    assert "learned from 40 steps of 4 datasets" in err
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


def recorded_steps(steps: Sequence[tuple[int, ...]], loads: Floats) -> Recorded:
    """Five datasets in turn."""
    parts = tuple(tuple(range(place, len(steps), 5)) for place in range(5))
    return Recorded(tuple((step,) for step in steps), loads, 1, (3,), parts)


def test_a_dataset_left_out_is_predicted_as_if_it_had_not_been_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the weights of all."""
    rng = np.random.default_rng(0)
    steps = [tuple(rng.integers(0, 6, 12).tolist()) for _ in range(25)]
    loads = rng.multinomial(12, [0.4, 0.3, 0.2, 0.1], (25, 1)).astype(np.float64)
    monkeypatch.setattr(heads, "_likeliest", lambda *_: (2.0, 1.0, 0.5))
    whole = recorded_steps(steps, loads)
    left = heads.learn(whole, None).left_out()[1]
    mine = np.array(whole.datasets[1])
    others = np.setdiff1d(np.arange(25), mine)
    four = tuple((place, place + 4) for place in range(4))
    again = heads.learn(replace(whole.of(others), datasets=four), None)
    predicted = again.predict([steps[place] for place in mine])
    np.testing.assert_allclose(left.loads, predicted.loads, atol=1e-9)
    assert left.doubt
    assert predicted.doubt
    np.testing.assert_allclose(left.doubt.alike, predicted.doubt.alike, atol=1e-9)


def test_what_like_datasets_were_off_by_corrects_and_spreads() -> None:
    """Of ten, the eight nearest to 0.5 were off by 1 and 3 in turn: 2 in the mean, 1.069 apart;
    t(7) = 2.3646 and one more."""
    of = Checked(np.array([9.0, *np.linspace(0, 1, 8), 9.0]), np.array([99, *([1, 3] * 4), 99.0]))
    off, spread = of.near(0.5)
    assert off == 2
    assert spread == pytest.approx((8 / 7 * 9 / 8) ** 0.5 * 2.3646 / 1.95996, abs=1e-4)


def test_a_router_that_looks_at_the_token_alone_is_learned() -> None:
    """Token t picks expert t of 4, whatever precedes it; 60 steps of 30 tokens."""
    rng = np.random.default_rng(0)
    steps = [tuple(rng.choice(4, 30, p=rng.dirichlet(np.ones(4))).tolist()) for _ in range(60)]
    loads = np.array([[np.bincount(step, minlength=4)] for step in steps], np.float64)
    learned = heads.learn(recorded_steps(steps[:50], loads[:50]), None)
    assert learned.error() < 0.02
    predicted = learned.predict(steps[50:])
    np.testing.assert_allclose(predicted.loads, loads[50:], atol=0.6)
    assert predicted.layer_numbers == (3,)


def test_contexts_are_counted_with_what_precedes_them() -> None:
    counts = Contexts.seen_in([[1, 2, 1, 2]]).count([[1, 2, 1, 2], [2, 9]])
    assert [own.sum(axis=1).tolist() for own in counts] == [[4, 1], [4, 0], [4, 0]]
    one, two, three = grams(counts, counts)
    assert one.tolist() == [[8, 2], [2, 1]]
    assert (two.tolist(), three.tolist()) == ([[6, 0], [0, 0]], [[4, 0], [0, 0]])
