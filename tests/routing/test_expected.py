"""Expected figures, worked out by hand, and against the measures of recorded loads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from core.routing import excess, expected
from core.routing.excess import Excess
from core.routing.expected import Doubt, Forecast, Planned
from core.routing.repeats import Repeats


def forecast(loads: list[list[list[float]]], tokens: list[int], top_k: int = 2) -> Forecast:
    of = np.array(loads)
    return Forecast(np.array(tokens), of, top_k, tuple(range(of.shape[1])))


def test_known_loads_have_the_excess_that_would_be_measured() -> None:
    of = forecast([[[6, 2, 4, 8], [5, 5, 5, 5]], [[1, 1, 0, 2], [2, 2, 0, 0]]], [10, 2])
    measured = excess.squared(of.loads, of.tokens[:, None], 2)
    assert of.excess_squared() == pytest.approx(measured, abs=1e-9)


def test_tokens_that_repeat_widen_the_floor() -> None:
    """CV² 1/4 of loads 1, 3 of 4 tokens (one pick): floor² 2·(1 - 10/16)/3 = 1/4, where every
    token has one other of its type (4 tokens as 2) 1/2."""
    of = forecast([[[1, 3]]], [4], top_k=1)
    assert of.floor_squared() == pytest.approx(0.25)
    assert of.excess_squared() == pytest.approx(0.25 - 0.25)
    alike = replace(of, repeats=Repeats(0.0, 1.0))
    assert alike.floor_squared() == pytest.approx(0.5)
    assert alike.excess_squared() == pytest.approx(0.25 - 0.5)


def test_a_fair_router_of_repeating_steps_is_at_the_floor() -> None:
    """A hundred times the same even chance draw: its spread among steps is nil, yet chance made
    it."""
    of = forecast([[[8.0, 5.0, 4.0, 3.0]]] * 100, [10] * 100)
    found = expected.prefill(of, Planned())
    assert found.excess_squared == pytest.approx(float(of.excess_squared()[0, 0]))
    assert found.excess_squared
    assert found.excess_squared > 0
    assert found.excess_cv is None


def test_a_single_token_has_no_excess() -> None:
    assert np.isnan(forecast([[[1.0, 1.0, 0.0]]], [1]).excess_squared()).all()


def test_the_expectation_over_random_routing_is_that_of_a_fair_router() -> None:
    """Every expert with probability 1/4, one pick a token: n/4 tokens expected, 4·n·(3/16) spread.
    S = n²/4 + 3n/4, so CV² - floor² = (n + 3)/(n - 1) - 1 - 4/(n - 1) = 0."""
    n = 20
    chance = Doubt(np.full((1, 1, 1), n), np.full((1, 4), 3 / 16))
    of = Forecast(np.array([n]), np.full((1, 1, 4), n / 4), 1, (0,), chance)
    assert of.excess_squared() == pytest.approx(0.0, abs=1e-12)


def test_the_error_of_the_excess_is_that_of_drawn_loads() -> None:
    """Three steps, two of them with errors in common, two layers; loads drawn 20,000 times."""
    rng = np.random.default_rng(0)
    tokens, loads = [20, 30, 1], rng.uniform(5, 15, (3, 2, 4))
    alike = np.array([[[9.0, 6, 0], [6, 8, 0], [0, 0, 1]], [[4.0, 0, 0], [0, 5, 0], [0, 0, 1]]])
    scale = np.array([[0.5, 1, 2, 1], [1.0, 1, 1, 3]])
    of = replace(forecast(loads.tolist(), tokens), repeats=Repeats(0.1, 0.5))
    drawn = np.zeros((20_000, 3, 2, 4))
    for layer in range(2):
        normal = rng.multivariate_normal(np.zeros(3), alike[layer], (20_000, 4)) * 1.0
        drawn[:, :, layer] = (normal * scale[layer][:, None] ** 0.5).transpose(0, 2, 1)
    squared = [np.nanmean(replace(of, loads=loads + one).excess_squared()) for one in drawn]
    unsure = replace(of, doubt=Doubt(alike, scale))
    assert np.nanmean(unsure.excess_squared()) == pytest.approx(np.mean(squared), rel=0.01)
    assert unsure.error() == pytest.approx(np.std(squared), rel=0.02)


def test_steps_hold_as_many_prompts_and_tokens_as_planned() -> None:
    of = forecast([[[float(n), n]] for n in (3, 4, 5, 9, 1)], [3, 4, 5, 9, 1])
    by_two = expected.in_steps(of, Planned(prompts=2, tokens=100))
    assert by_two.tokens.tolist() == [7, 14, 1]
    assert by_two.loads.tolist() == [[[7, 7]], [[14, 14]], [[1, 1]]]
    by_tokens = expected.in_steps(of, Planned(prompts=100, tokens=8))
    assert by_tokens.tokens.tolist() == [7, 5, 9, 1]  # a prompt is not split


def test_active_experts_and_the_busiest_rank() -> None:
    """Shares 1/2, 1/2, 0, 0 at one pick a token, three tokens: each of the first two is active with
    1 - 1/8; both lie on rank 0, which has all the load, twice the mean."""
    shares = np.array([[0.5, 0.5, 0.0, 0.0]])
    found = expected.phase(shares, 3, 1, Planned(ranks=2), Excess(1.0), 0.25)
    assert found.active_experts == pytest.approx(1.75)
    assert found.rank_imbalance == pytest.approx(2.0)
    assert found.busiest_rank_experts == pytest.approx(1.75, abs=0.08)  # drawn 400 times
    assert found.noise_floor == 0.5


def test_without_expert_parallelism_no_rank_has_a_figure() -> None:
    found = expected.phase(np.full((1, 4), 0.25), 8, 2, Planned(), Excess(None, "none"), np.nan)
    assert found.noise_floor is None
    assert found.busiest_rank_experts is None
    assert found.rank_imbalance is None
