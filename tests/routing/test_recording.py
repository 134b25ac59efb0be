"""Gate logs of every kind become recordings; what cannot be replayed is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.gate_logs import write_layers
from support.oracle import ORACLE, needs_oracle
from support.synthetic import as_log, routed, write_log

from core.errors import FileError
from core.experiment.dose import Replay
from core.recorder.gatescope_recorder.order import Order
from core.recorder.gatescope_recorder.replay import Player, Track
from core.routing import recording
from core.routing.gatelog import GateLog
from core.routing.recording import Recording
from core.routing.replayed import ReplayCheck, Replayed, Steps

FAIR = np.ones(8)


def steps(tokens: list[int], layers: int = 2, seed: int = 0) -> np.ndarray:
    return routed(np.random.default_rng(seed), tokens, layers, FAIR)


def test_runs_of_a_binary_log_keep_their_phases_and_order(tmp_path: Path) -> None:
    loads = steps([30, 5, 5, 8, 5, 6])
    labels = ["001", "001", "001", "002", "warmup", "001~hot-rank~0.5"]
    write_log(tmp_path / "dp0_pp0.gatelog", loads, labels=labels, prefill=[30, 0, 0, 0, 0, 0])
    found = recording.read(tmp_path)
    assert (found.layers, found.experts, found.top_k) == (2, 8, 2)
    assert sorted(found.runs) == ["001", "002"]
    assert np.array_equal(found.runs["001"]["prefill"], loads[:1])
    assert np.array_equal(found.runs["001"]["decode"], loads[1:3])
    assert list(found.runs["002"]) == ["decode"]
    assert found.left_out == [f"{tmp_path}: 1 runs whose routing was itself forced"]


def test_a_later_try_and_a_later_start_take_an_earlier_ones_place(tmp_path: Path) -> None:
    loads = steps([3, 4, 5, 6])
    for folder, own, labels in (
        ("gate_logs", loads[:3], ["001-try2", "001", "002"]),
        ("gate_logs-start2", loads[3:], ["002"]),
    ):
        (tmp_path / folder).mkdir()
        write_log(tmp_path / folder / "dp0_pp0.gatelog", own, labels=labels)
    found = recording.read(tmp_path)
    assert np.array_equal(found.runs["001"]["decode"], loads[:1])
    assert np.array_equal(found.runs["002"]["decode"], loads[3:])


def test_upstreams_folders_are_runs_of_their_datasets(tmp_path: Path) -> None:
    for number in (1, 12):
        loads = steps([4, 4, 4], seed=number).astype(float)
        loads[1] = 0
        by_layer = loads.transpose(1, 0, 2).tolist()
        write_layers(tmp_path / f"gates_logs_{number:02d}", by_layer, [4, 0, 4])
    found = recording.read(tmp_path)
    assert sorted(found.runs) == ["001", "012"]
    assert np.array_equal(found.runs["012"]["decode"], steps([4, 4, 4], seed=12)[[0, 2]])
    assert found.left_out == []


@pytest.mark.parametrize(
    ("loads", "why"),
    [
        ([4.0, 3.0, 0.0, 0.0], "1 steps whose loads"),  # Σ is not 2 × 3
        ([4.0, 2.0, 0.0, 0.0], "1 steps whose loads"),  # 4 of 3 tokens
        ([2.5, 2.5, 1.0, 0.0], "1 steps whose loads"),  # a mean, not a count
    ],
)
def test_a_step_that_no_tokens_could_give_is_left_out_and_named(
    tmp_path: Path, loads: list[float], why: str
) -> None:
    good = [2.0, 2.0, 1.0, 1.0]
    write_layers(tmp_path / "gates_logs_01", [[good, loads, good]], [3, 3, 3])
    found = recording.read(tmp_path)
    assert found.runs["001"]["decode"].tolist() == [[good], [good]]
    assert why in found.left_out[0]


def test_what_holds_no_run_is_refused_with_words(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="not a folder of gate logs to replay"):
        recording.read(tmp_path / "missing")
    with pytest.raises(FileError, match=r"no run to replay: no gate logs .* name a folder"):
        recording.read(tmp_path)
    run = tmp_path / "run"
    (run / "baseline" / "gate_logs").mkdir(parents=True)
    write_log(run / "baseline" / "gate_logs" / "dp0_pp0.gatelog", steps([3]))
    with pytest.raises(FileError, match=r"gate logs lie deeper, .* give .*/run/baseline itself"):
        recording.read(run)
    assert list(recording.read(run / "baseline").runs) == ["001"]


def test_folders_of_different_models_are_refused(tmp_path: Path) -> None:
    for number, layers in ((1, 2), (2, 3)):
        by_layer = steps([4], layers).transpose(1, 0, 2).astype(float).tolist()
        write_layers(tmp_path / f"gates_logs_{number:02d}", by_layer, [4])
    with pytest.raises(FileError, match="3 layers of 8 experts, top-2; the logs before it have 2"):
        recording.read(tmp_path)


@needs_oracle
def test_the_published_logs_can_all_be_replayed() -> None:
    found = recording.read(ORACLE / "gate_logs")
    assert (found.layers, found.experts, found.top_k) == (32, 8, 2)
    assert len(found.runs) == 15
    assert found.left_out == []
    assert {run["decode"].shape for run in found.runs.values()} == {(10, 32, 8)}
    layer = json.loads((ORACLE / "gate_logs/gates_logs_01/gate_logs_7.json").read_bytes())
    assert found.runs["001"]["decode"][:, 7].tolist() == layer["expert_loads"]


# --- what a run's own log says of its replay ---

LABEL = "001~replay~001"


def order_of(folder: Path, decode: list[int]) -> Order:
    runs = {"001": {"decode": steps(decode)}}
    Recording(folder, 2, 8, 2, runs).write(folder)
    return Order((), replays=("replay~001",), recording=str(folder))


def played(order: Order, tokens: list[int]) -> np.ndarray:
    """Loads of the steps that a server makes of the recording."""
    player = Player(Track(order, "001", 2, 2))
    made = [player.next("decode", n, 0) for n in tokens]
    return np.stack(
        [
            [np.bincount(layer.ravel(), minlength=8) for layer in ids]
            for ids in made
            if ids is not None
        ]
    )


def checked(order: Order, *parts: GateLog) -> tuple[str, Replayed | None]:
    check = ReplayCheck(Replay("001"), LABEL, order)
    for part in parts:
        check.add(part)
    return check.wrong(), check.replayed


def test_a_replay_is_compared_count_for_count_and_its_steps_are_sorted(tmp_path: Path) -> None:
    order = order_of(tmp_path, [4, 5, 6])
    tokens = [4, 3, 7, 4]  # exact; 3 of 5; 6 and 1 of 4; and so on with 5: 4 of them
    wrong, found = checked(order, as_log(played(order, tokens), LABEL))
    assert (wrong, found) == (
        "",
        Replayed(
            source="001",
            layers=2,
            recorded_layers=2,
            decode=Steps(exact=1, thinned=2, added=1),
        ),
    )
    assert found
    assert found.in_words() == "decode: 1 exact, 1 added, 2 thinned"


def test_one_count_in_another_place_fails_the_run(tmp_path: Path) -> None:
    order = order_of(tmp_path, [6, 6])
    loads = played(order, [6, 6])
    hot, cold = int(loads[1, 0].argmax()), int(loads[1, 0].argmin())
    loads[1, 0, hot] -= 1
    loads[1, 0, cold] += 1
    wrong, _ = checked(order, as_log(loads, LABEL))
    assert wrong == "requested replayed routing: 001; 1 steps do not have the recorded loads"


def test_natural_steps_in_the_place_of_replayed_ones_fail_the_run(tmp_path: Path) -> None:
    order = order_of(tmp_path, [6, 6])
    wrong, _ = checked(order, as_log(steps([6, 6], seed=9), LABEL))
    assert wrong.endswith("; 2 steps do not have the recorded loads")
    wrong, found = checked(order)
    assert wrong == "replayed routing: 001 is not confirmed: the gate log holds no step of this run"
    assert found is None


def test_prompt_steps_that_the_log_lacks_are_natural_and_counted(tmp_path: Path) -> None:
    order = order_of(tmp_path, [6, 6])
    loads = np.concatenate([steps([20], seed=9), played(order, [6])])
    wrong, found = checked(order, as_log(loads, LABEL, [20, 0]))
    assert wrong == ""
    assert found
    assert (found.prefill, found.decode) == (Steps(natural=1), Steps(exact=1))


def test_behind_a_lost_step_nothing_is_claimed(tmp_path: Path) -> None:
    order = order_of(tmp_path, [6, 6, 6, 6])
    log = as_log(played(order, [6, 6, 6]), LABEL)
    wrong, found = checked(order, log.where(np.array([True, False, True])))
    assert wrong == ""
    assert found
    assert found.decode == Steps(exact=1, unproven=1)


@pytest.mark.parametrize(("seed", "fits"), [(0, True), (5, False)])
def test_shares_of_data_parallel_ranks_are_held_against_the_sums(
    tmp_path: Path, seed: int, fits: bool
) -> None:
    """400 steps of two ranks with 7 of 16 tokens each."""
    skewed = routed(np.random.default_rng(2), [16] * 400, 2, np.array([4.0, 2, 1, 1, 1, 1, 1, 1]))
    Recording(tmp_path, 2, 8, 2, {"001": {"decode": skewed}}).write(tmp_path)
    order = Order((), replays=("replay~001",), recording=str(tmp_path))
    ranks = [Player(Track(order, "001", 2, 2, (rank, 2))) for rank in (0, 1)]
    loads = []
    for at in range(400):
        made = [rank.next("decode", 7, at) for rank in ranks]
        ids = np.concatenate([one for one in made if one is not None], axis=1)
        loads.append([np.bincount(layer.ravel(), minlength=8) for layer in ids])
    log = as_log(np.array(loads) if fits else steps([14] * 400, seed=seed), LABEL)
    both = GateLog(log.loads, log.columns, log.segments, 2, dp_size=2)
    wrong, found = checked(order, both)
    assert (wrong == "") == fits, wrong
    assert found
    assert found.decode == Steps(unproven=400)
