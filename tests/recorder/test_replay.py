"""Recorded load vectors become choices with exactly these loads; other steps are made of them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.synthetic import routed

from core.recorder.gatescope_recorder import replay
from core.recorder.gatescope_recorder.dose import Course
from core.recorder.gatescope_recorder.order import DoseError, Order
from core.recorder.gatescope_recorder.replay import Player, Track
from core.routing.gatelog import Counts
from core.routing.recording import Recording

LAYERS, EXPERTS, TOP_K = 3, 8, 2
FAIR = np.ones(EXPERTS)


def loads_of(ids: np.ndarray) -> np.ndarray:
    """[layers, experts] of choices [layers, tokens, top_k]."""
    return np.stack([np.bincount(layer.ravel(), minlength=EXPERTS) for layer in ids])


def recorded(folder: Path, decode: list[int], prefill: list[int] | None = None) -> Order:
    """A recording of one run, "001", whose steps have so many tokens."""
    draw = np.random.default_rng(3)
    runs: dict[str, Counts] = {"decode": routed(draw, decode, LAYERS, FAIR)}
    if prefill:
        runs["prefill"] = routed(draw, prefill, LAYERS, FAIR)
    Recording(folder, LAYERS, EXPERTS, TOP_K, {"001": runs}).write(folder)
    return Order((), replays=("replay~001",), recording=str(folder))


@st.composite
def vectors(draw: st.DrawFn) -> tuple[np.ndarray, int, int]:
    """Loads [layers, experts] that top_k experts a token can give, top_k and the tokens."""
    experts, top_k = draw(st.integers(2, 9)), draw(st.integers(1, 3))
    top_k, tokens = min(top_k, experts), draw(st.integers(1, 40))
    layers = []
    for _ in range(draw(st.integers(1, 3))):
        room, left = [tokens] * experts, top_k * tokens
        for e in range(experts):
            least = max(0, left - tokens * (experts - e - 1))
            room[e] = draw(st.integers(least, min(tokens, left)))
            left -= room[e]
        layers.append(room)
    return np.array(layers, np.uint16), top_k, tokens


@given(vectors(), st.integers(0, 9))
def test_any_vector_without_an_expert_above_the_tokens_is_realised_exactly(
    vector: tuple[np.ndarray, int, int], seed: int
) -> None:
    loads, top_k, tokens = vector
    ids = replay.assign(loads, top_k, np.random.default_rng(seed))
    assert ids.shape == (len(loads), tokens, top_k)
    for layer, want in zip(ids, loads, strict=True):
        assert np.bincount(layer.ravel(), minlength=len(want)).tolist() == want.tolist()
        assert all(len(set(token)) == top_k for token in layer.tolist())


def test_tokens_are_shuffled_apart_in_each_layer() -> None:
    loads = np.array([[20, 20, 0, 0], [20, 20, 0, 0], [20, 10, 10, 0]])
    ids = replay.assign(loads, 2, np.random.default_rng(0))
    firsts = ids[2, :, 1].tolist()
    assert firsts != sorted(firsts)


def test_steps_follow_the_log_and_go_round(tmp_path: Path) -> None:
    track = Track(recorded(tmp_path, [4, 4, 4]), "001", TOP_K, LAYERS)
    player = Player(track)
    played = [player.next("decode", 4, 0) for _ in range(5)]
    whole = [ids for ids in played if ids is not None]
    for place, ids in enumerate(whole):
        assert np.array_equal(loads_of(ids), track.loads["decode"][place % 3])
    assert len(whole) == 5
    assert np.array_equal(whole[0], whole[3])  # the same tokens, too


def test_a_larger_step_adds_recorded_ones_and_a_smaller_one_takes_a_part(tmp_path: Path) -> None:
    track = Track(recorded(tmp_path, [4, 5, 6]), "001", TOP_K, LAYERS)
    first, second = (track.loads["decode"][place].astype(int) for place in (0, 1))
    player = Player(track)
    nine = player.next("decode", 9, 0)
    assert nine is not None
    assert np.array_equal(loads_of(nine), first + second)
    two = player.next("decode", 2, 0)
    assert two is not None
    assert (loads_of(two) <= track.loads["decode"][2]).all()
    assert loads_of(two).sum(axis=1).tolist() == [4, 4, 4]
    seven = player.next("decode", 7, 0)  # the log's first step, and three tokens of its second
    assert seven is not None
    more = loads_of(seven) - first
    assert (more >= 0).all()
    assert (more <= second).all()


def test_prefill_and_decode_are_apart_and_a_missing_phase_is_natural(tmp_path: Path) -> None:
    order = recorded(tmp_path, [4, 4], [30])
    player = Player(Track(order, "001", TOP_K, LAYERS))
    player.next("decode", 4, 0)
    prompt = player.next("prefill", 30, 0)
    assert prompt is not None
    assert np.array_equal(loads_of(prompt), player.track.loads["prefill"][0])
    assert (player.decode, player.prefill) == (1, 1)
    only = Player(Track(recorded(tmp_path / "other", [4]), "001", TOP_K, LAYERS))
    assert only.next("prefill", 30, 0) is None


def test_data_parallel_ranks_share_a_recorded_step(tmp_path: Path) -> None:
    """Equal shares add up to the recorded loads; of an odd number each rank gets the larger half in
    turn."""
    order = recorded(tmp_path, [6, 7, 7])
    players = [Player(Track(order, "001", TOP_K, LAYERS, (rank, 2))) for rank in (0, 1)]
    for at, shares in ((0, (3, 3)), (1, (3, 4)), (2, (4, 3)), (3, (3, 3))):
        parts = [p.next("decode", n, at) for p, n in zip(players, shares, strict=True)]
        total = sum(loads_of(part) for part in parts if part is not None)
        assert np.array_equal(total, players[0].track.loads["decode"][at % 3])


def test_each_run_begins_at_the_start_of_what_it_replays(tmp_path: Path) -> None:
    order = recorded(tmp_path, [4, 4, 4])
    course = Course(order, EXPERTS, TOP_K, LAYERS, 64)
    one, two, again = (
        course.next({"replay~001"}, 4, run=run)
        for run in ("001~replay~001", "001~replay~001", "001-r2~replay~001")
    )
    assert isinstance(one, np.ndarray)
    assert isinstance(two, np.ndarray)
    assert isinstance(again, np.ndarray)
    assert np.array_equal(one, again)
    assert not np.array_equal(loads_of(one), loads_of(two))
    assert course.next({"replay~001", ""}, 4, run="001~replay~001") is None
    assert course.next({"replay~009"}, 4, run="001~replay~009") is None


@pytest.mark.parametrize(
    ("layers", "experts", "top_k", "said"),
    [
        (4, 8, 2, "recorded were 3 layers, this model has 4: the others would have no loads"),
        (3, 16, 2, "recorded were 8 experts a layer with top-2, this model has 16 with top-2"),
        (3, 8, 1, "recorded were 8 experts a layer with top-2, this model has 8 with top-1"),
    ],
)
def test_a_log_of_another_shape_is_refused(
    tmp_path: Path, layers: int, experts: int, top_k: int, said: str
) -> None:
    order = recorded(tmp_path, [4])
    with pytest.raises(DoseError, match=said):
        Course(order, experts, top_k, layers, 64)


def test_a_damaged_recording_is_named(tmp_path: Path) -> None:
    order = recorded(tmp_path, [4])
    loads, about = tmp_path / "001.decode.npy", tmp_path / replay.ABOUT
    good = loads.read_bytes()
    flat, fractions = io.BytesIO(), io.BytesIO()
    np.save(flat, np.ones(4, np.uint8))
    np.save(fractions, np.ones((1, LAYERS, EXPERTS)))
    for data in (b"", b"PK\3\4", good[:90], good[:-1], flat.getvalue(), fractions.getvalue()):
        loads.write_bytes(data)
        with pytest.raises(DoseError, match=r"001\.decode\.npy: not the loads of a recorded run"):
            Course(order, EXPERTS, TOP_K, LAYERS, 64)
    loads.write_bytes(good)
    for data in (b"", b"[]", b"{}", b'{"layers": "3", "experts": 8, "top_k": 2}'):
        about.write_bytes(data)
        with pytest.raises(DoseError, match="recorded"):
            Course(order, EXPERTS, TOP_K, LAYERS, 64)


def test_of_more_layers_the_first_are_replayed(tmp_path: Path) -> None:
    order = recorded(tmp_path, [4])
    ids = Course(order, EXPERTS, TOP_K, 2, 64).next({"replay~001"}, 4, run="001~replay~001")
    assert isinstance(ids, np.ndarray)
    whole = np.load(tmp_path / "001.decode.npy")
    assert np.array_equal(loads_of(ids), whole[0, :2])


def test_loads_are_mapped_not_read(tmp_path: Path) -> None:
    track = Track(recorded(tmp_path, [4]), "001", TOP_K, LAYERS)
    assert isinstance(track.loads["decode"], np.memmap)


def test_the_order_survives_its_environment_variable(tmp_path: Path) -> None:
    order = Order(("hot-rank~0.5",), 2, 8, 1, ("replay~001", "replay~a.b_c-r2"), str(tmp_path))
    assert Order.decode(order.encode()) == order
    before = '{"labels": ["hot-rank~0.5"], "ranks": 2, "rotate_steps": 64, "seed": 0}'
    assert Order.decode(before) == Order(("hot-rank~0.5",), 2)
