"""Forced routing: the distribution is exact, reachable levels are known, and a pool holds the
requested distribution."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from core.recorder.gatescope_recorder import dose
from core.recorder.gatescope_recorder.order import PATTERNS, DoseError, Order, dose_of


def enumerated(weights: list[float], top_k: int) -> list[float]:
    """Inclusion probabilities of successive sampling, from every ordered choice that there is."""
    included = [0.0] * len(weights)
    for choice in itertools.permutations(range(len(weights)), top_k):
        chance, left = 1.0, sum(weights)
        for expert in choice:
            chance *= weights[expert] / left
            left -= weights[expert]
        for expert in choice:
            included[expert] += chance
    return included


@pytest.mark.parametrize(
    ("experts", "top_k", "hot", "weight"),
    [(4, 1, 1, 3.0), (5, 2, 2, 7.5), (6, 3, 1, 40.0), (7, 3, 4, 2.0)],
)
def test_inclusion_probabilities_are_those_of_every_choice_that_there_is(
    experts: int, top_k: int, hot: int, weight: float
) -> None:
    want = enumerated([weight] * hot + [1.0] * (experts - hot), top_k)
    p_hot, p_cold = dose.inclusion(weight, hot, experts, top_k)
    assert [p_hot] * hot + [p_cold] * (experts - hot) == pytest.approx(want, abs=1e-12)
    assert dose.cv(weight, hot, experts, top_k) == pytest.approx(
        np.std(want) / np.mean(want), abs=1e-12
    )


def test_the_most_that_can_be_reached() -> None:
    """Two hot of eight, two a token: √(8/2 - 1). One hot of eight: it takes 1/2 of all, the others
    1/14 each."""
    assert dose.highest(2, 8, 2) == pytest.approx(math.sqrt(3))
    assert dose.highest(1, 8, 2) == pytest.approx(np.std([7] + [1] * 7) / 1.75)
    assert dose.cv(dose.weight_for(1.732, 2, 8, 2), 2, 8, 2) == pytest.approx(1.732)
    with pytest.raises(DoseError) as caught:
        dose.weight_for(1.8, 2, 8, 2)
    assert (
        str(caught.value)
        == "a CV of 1.8 is unreachable with 2 hot of 8 experts, 2 per token: 1.732 is the most"
    )


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (64, 6)])
@pytest.mark.parametrize("level", [0, 0.25, 1.0, 1.5])
def test_a_pool_has_distinct_experts_and_the_cv_that_was_requested_for(
    pattern: str, experts: int, top_k: int, level: float
) -> None:
    pool = dose.pool(f"{pattern}~{level:g}", experts, top_k, ranks=2)
    assert pool.shape == (dose.ROWS, top_k)
    assert (np.diff(np.sort(pool, axis=1), axis=1) > 0).all()
    counts = np.bincount(pool.ravel(), minlength=experts)
    assert counts.std() / counts.mean() == pytest.approx(level, abs=2e-3)
    law = dose.law(f"{pattern}~{level:g}", experts, top_k, ranks=2)
    assert np.array_equal(counts > 0, np.isin(np.arange(experts), law.active))
    assert level == 0 or set(np.argsort(-counts)[: len(law.hot)]) == set(law.hot)
    assert counts / dose.ROWS == pytest.approx(law.shares(experts, top_k), abs=2e-3)


def test_a_stretch_of_a_pool_looks_like_independent_draws() -> None:
    """Thirty uniform tokens show a CV of √((8/2 - 1)/30) = 0.316 for no reason; a level of 0.5
    comes on top of it."""
    for level in (0.0, 0.5):
        pool = dose.pool(f"hot-experts~{level:g}", 8, 2)
        steps = pool[: 546 * 30].reshape(546, 30, 2)
        counts = np.stack([np.bincount(step.ravel(), minlength=8) for step in steps])
        p = np.bincount(pool.ravel(), minlength=8) / dose.ROWS
        noise = (p * (1 - p)).mean() / 30 / 0.25**2
        assert np.mean((counts.std(axis=1) / 7.5) ** 2) == pytest.approx(level**2 + noise, rel=0.05)


def test_hot_rank_and_spread_differ_in_place_only() -> None:
    assert dose.hot_experts("hot-rank", 8, 2, 2) == (0, 1)
    assert dose.hot_experts("spread", 8, 2, 2) == (0, 4)
    assert dose.hot_experts("hot-rank", 64, 6, 4) == (0, 1, 2, 3)
    assert dose.hot_experts("spread", 64, 6, 4) == (0, 16, 32, 48)
    assert dose.hot_experts("spread", 8, 2, 4) == (0, 2)  # two a rank: two hot ones fill rank 0
    with pytest.raises(DoseError, match="hot-rank needs 2 or more expert-parallel ranks"):
        dose.hot_experts("hot-rank", 8, 2, 1)


def test_few_experts_has_as_few_active_ones_as_its_level_allows() -> None:
    """A CV of L over E experts needs E / (1 + L²) of them; what is left over is heat among them."""
    assert dose.law("few-experts~1", 8, 2, 1) == dose.Law((0, 1, 2, 3), (), 1.0)
    assert dose.law("few-experts~0", 8, 2, 1).active == tuple(range(8))
    half = dose.law("few-experts~0.5", 8, 2, 1)
    assert (half.active, half.hot) == (tuple(range(7)), (0, 1))
    most = dose.law(f"few-experts~{math.sqrt(3)}", 8, 2, 1)
    assert (most.active, most.hot) == ((0, 1), ())
    with pytest.raises(DoseError, match=r"1\.8 is unreachable with 2 of 8 experts active: 1\.732"):
        dose.law("few-experts~1.8", 8, 2, 1)


def test_pools_are_the_same_for_the_same_seed_only() -> None:
    one, again, other = (dose.pool("spread~1", 8, 2, 2, seed) for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_the_dose_is_read_from_a_segments_label() -> None:
    assert dose_of("001~hot-rank~0.5") == dose_of("001-r2~hot-rank~0.5-try2") == "hot-rank~0.5"
    assert dose_of("001") == dose_of("warmup") == dose_of("001~mild~0.5") == ""


def test_an_order_survives_the_environment() -> None:
    order = Order(("hot-rank~0.5", "spread~1"), 2, 64, 7)
    assert Order.decode(order.encode()) == order
