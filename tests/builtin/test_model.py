"""The model: hand-worked numbers of its parts, and its logits against a plain forward pass in
float64."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.reference import Reference, forward

from core.builtin import checkpoint
from core.builtin.batch import Batch, Span
from core.builtin.kv_cache import KVCache
from core.builtin.model import Model, rms_norm, rope_tables, rotate, route
from core.builtin.parallel import ROW_BLOCK, Layout, Ranks, Split, swiglu
from core.builtin.weights import Floats, Shape, Weights

SHAPE = Shape()  # the one that is served
SMALL = Shape(
    layers=2,
    hidden=16,
    heads=4,
    kv_heads=2,
    head_dim=4,
    intermediate=24,
    experts=4,
    top_k=2,
    vocab=50,
)
SLOTS, LENGTH, MAX_TOKENS = 4, 160, 512
SEED = 3
TOLERANCE = 4e-5  # of logits of up to 16, float32 against float64
MARGIN = 1e-4  # router logits nearer than this could fall either way in float32

LAYOUTS = [Layout(split, ranks) for split in Split for ranks in (1, 2, 4)]


def prompt(length: int, seed: int, shape: Shape = SHAPE) -> list[int]:
    drawn: list[int] = np.random.default_rng(seed).integers(0, shape.vocab, length).tolist()
    return drawn


A, B, C = prompt(150, 1), prompt(40, 2), prompt(30, 5)


@cache
def weights(shape: Shape = SHAPE) -> Weights:
    """The trained ones for the shape that is served, random ones for others."""
    if shape == SHAPE:
        return checkpoint.read(checkpoint.FOLDER, shape)
    return Weights.seeded(shape, SEED)


@cache
def expected(tokens: tuple[int, ...], shape: Shape = SHAPE) -> Reference:
    found = forward(shape, weights(shape), list(tokens))
    assert found.margin > MARGIN, "a router is undecided on this prompt: choose another"
    return found


@contextlib.contextmanager
def served(
    layout: Layout = LAYOUTS[0], shape: Shape = SHAPE, length: int = LENGTH
) -> Iterator[Model]:
    with contextlib.closing(Ranks(shape, weights(shape), layout, MAX_TOKENS)) as ranks:
        yield Model(shape, weights(shape), KVCache(shape, SLOTS, length), ranks)


@pytest.fixture(
    scope="module", params=LAYOUTS, ids=lambda layout: f"{layout.split}, {layout.ranks}"
)
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    """The served shape under every layout. Tests share its cache: each writes a slot from its
    start."""
    with served(request.param) as model:
        yield model


def assert_close(logits: Floats, reference: npt.NDArray[np.float64]) -> None:
    np.testing.assert_allclose(logits, reference, rtol=0, atol=TOLERANCE)


class TestParts:
    def test_rms_norm_divides_by_the_root_mean_square(self) -> None:
        x = np.array([[3, 4]], np.float32)  # mean square 12.5
        weight = np.array([1, 2], np.float32)
        np.testing.assert_allclose(
            rms_norm(x, weight, 0.0), [[3 / 12.5**0.5, 8 / 12.5**0.5]], rtol=1e-6
        )

    def test_rotate_turns_dimension_i_with_i_plus_half(self) -> None:
        shape = Shape(head_dim=4, rope_theta=100.0)  # angles a position: 1 and 100^(-2/4) = 0.1
        cos, sin = rope_tables(shape, 3)
        x = np.array([1, 0, 0, 2], np.float32).reshape(1, 1, 4)
        turned = rotate(x, cos[[2]], sin[[2]])[0, 0]
        np.testing.assert_allclose(
            turned, [math.cos(2), -2 * math.sin(0.2), math.sin(2), 2 * math.cos(0.2)], rtol=1e-6
        )

    def test_route_takes_the_best_and_makes_their_weights_sum_to_one(self) -> None:
        logits = np.log(np.array([[1, 6, 1, 2], [5, 1, 1, 5]], np.float32))
        chosen, mix = route(logits, 2)
        assert chosen.tolist() == [[1, 3], [0, 3]]
        np.testing.assert_allclose(mix, [[0.75, 0.25], [0.5, 0.5]], rtol=1e-6)

    def test_swiglu_gates_one_product_with_the_silu_of_the_other(self) -> None:
        gate_up = np.array(
            [[math.log(3), 5]], np.float32
        )  # x = 1: gate ln 3, whose sigmoid is 3/4, and up 5
        out = swiglu(np.ones((1, 1), np.float32), gate_up, np.array([[2.0]], np.float32))
        np.testing.assert_allclose(out, [[0.75 * math.log(3) * 5 * 2]], rtol=1e-6)

    def test_the_same_seed_gives_the_same_weights_and_another_gives_others(self) -> None:
        one, same, other = (Weights.seeded(SMALL, seed).gate_up for seed in (1, 1, 2))
        assert np.array_equal(one, same)
        assert not np.array_equal(one, other)


class TestAgainstReference:
    def test_prefill(self, model: Model) -> None:
        found = model.forward(Batch.of([Span(0, 0, A, True)]))
        assert_close(found.logits, expected(tuple(A)).logits[[-1]])
        assert found.counts.tolist() == expected(tuple(A)).counts(0, len(A), SHAPE.experts)

    def test_chunked_prefill(self, model: Model) -> None:
        start = 0
        for stop in (1, 64, 65, 130, len(A)):
            found = model.forward(Batch.of([Span(1, start, A[start:stop], True)]))
            assert_close(found.logits, expected(tuple(A)).logits[[stop - 1]])
            assert found.counts.tolist() == expected(tuple(A)).counts(start, stop, SHAPE.experts)
            start = stop

    def test_decode_from_the_cache(self, model: Model) -> None:
        model.forward(Batch.of([Span(2, 0, A[:140], False)]))
        for at in range(140, len(A)):
            found = model.forward(Batch.of([Span(2, at, [A[at]], True)]))
            assert_close(found.logits, expected(tuple(A)).logits[[at]])

    def test_a_batch_of_decodes_a_chunk_and_a_prompt(self, model: Model) -> None:
        """Slots out of order and with a gap, sequences of different lengths, one that wants no
        logits."""
        first = model.forward(
            Batch.of([Span(3, 0, A[:100], False), Span(0, 0, B[:9], False), Span(1, 0, C, True)])
        )
        assert_close(first.logits, expected(tuple(C)).logits[[-1]])
        mixed = [
            Span(3, 100, A[100:101], True),
            Span(2, 0, C[:20], False),
            Span(0, 9, [B[9]], True),
        ]
        found = model.forward(Batch.of(mixed))
        assert_close(
            found.logits, np.stack([expected(tuple(A)).logits[100], expected(tuple(B)).logits[9]])
        )
        parts = [(A, 100, 101), (C, 0, 20), (B, 9, 10)]
        each = [
            expected(tuple(tokens)).counts(start, stop, SHAPE.experts)
            for tokens, start, stop in parts
        ]
        assert found.counts.tolist() == np.sum(each, axis=0).tolist()

    def test_a_slot_used_again_knows_nothing_of_its_last_sequence(self, model: Model) -> None:
        model.forward(Batch.of([Span(0, 0, A, False)]))
        model.forward(Batch.of([Span(0, 0, B[:-1], False)]))
        found = model.forward(Batch.of([Span(0, len(B) - 1, B[-1:], True)]))
        assert_close(found.logits, expected(tuple(B)).logits[[-1]])


def test_an_expert_with_more_rows_than_a_block() -> None:
    """One token repeated goes to the same two experts nearly always: far more rows than ROW_BLOCK
    for them."""
    tokens = [7] * (ROW_BLOCK + 44)
    shape = replace(SMALL, layers=1)
    with served(shape=shape, length=len(tokens)) as model:
        found = model.forward(Batch.of([Span(0, 0, tokens, True)]))
    assert found.counts.max() == len(tokens)
    assert_close(found.logits, expected(tuple(tokens), shape).logits[[-1]])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_cut_of_any_prompts_into_steps_gives_the_same_logits(data: st.DataObject) -> None:
    """Sequences advance by any number of tokens in any order; the end is as if each had run alone
    and whole."""
    tokens = st.lists(st.integers(0, SMALL.vocab - 1), min_size=1, max_size=20)
    prompts = data.draw(st.lists(tokens, min_size=1, max_size=SLOTS))
    with served(shape=SMALL, length=20) as model:
        done = [0] * len(prompts)
        last: dict[int, Floats] = {}
        while open_slots := [slot for slot, all_ in enumerate(prompts) if done[slot] < len(all_)]:
            taken = data.draw(st.lists(st.sampled_from(open_slots), min_size=1, unique=True))
            spans = []
            for slot in taken:
                stop = data.draw(st.integers(done[slot] + 1, len(prompts[slot])))
                spans.append(Span(slot, done[slot], prompts[slot][done[slot] : stop], True))
                done[slot] = stop
            last.update(zip(taken, model.forward(Batch.of(spans)).logits, strict=True))
        for slot, all_ in enumerate(prompts):
            alone = model.forward(Batch.of([Span(slot, 0, all_, True)])).logits[0]
            np.testing.assert_allclose(last[slot], alone, rtol=0, atol=TOLERANCE)
