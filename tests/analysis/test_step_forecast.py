"""Times of planned steps, by a cost model whose terms are known."""

from __future__ import annotations

import numpy as np
import pytest

from core.analysis.calibration import Calibration
from core.analysis.cost_model import ROWS, CostModel
from core.analysis.step_forecast import Timer
from core.routing.expected import Expected, ExpectedPhase, Forecast, Planned
from core.stats.estimate import Estimate

UNTIMED = ExpectedPhase(tokens=1, excess_cv=None, active_experts=1)
PLANNED = Planned(prompts=4, tokens=60, decode=4)


def timer(reason: str | None = None, ranks: int = 1) -> Timer:
    """1 ms a step; 10 µs a request, 1 µs a token of context, 100 µs an active expert of the busiest
    rank in decode; 20 µs a prompt token in prefill."""

    def terms(**us: float) -> dict[str, Estimate]:
        return {name: Estimate(value) for name, value in us.items()}

    decode = terms(fixed=1000, requests=10, context=1, active=100)
    return Timer(
        Calibration(
            backend="one",
            engine="",
            made="",
            decode=CostModel(phase="decode", by=ROWS, terms=decode),
            prefill=CostModel(
                phase="prefill", by=ROWS, terms=terms(fixed=1000, prefill_tokens=20), reason=reason
            ),
        ),
        None,
        ranks,
        output_len=20,
    )


def timed(of: Timer) -> Expected:
    """Five prompts of 30 tokens, four at once, of which a step takes two."""
    tokens = np.full(5, 30)
    prompts = Forecast(tokens, np.full((5, 3, 4), 15.0), 2, (0, 1, 2))
    known = Expected(
        model="", mode="", prompts=5, tokens=150, layer_numbers=[], loads=[],
        prefill=UNTIMED, decode=UNTIMED,
    )  # fmt: skip
    shares = np.tile([0.5, 0.5, 0.0, 0.0], (3, 1))
    return of.timed(known, prompts, shares, PLANNED)


def test_steps_cost_what_the_terms_say() -> None:
    """Prefill steps of 60, 60 and 30 tokens: 2.2, 2.2, 1.6 ms; two prompts wait for one step, two
    for two, the last for its own. Decode: 4 requests of 40 tokens, then 1, experts 0 and 1 in 3
    layers."""
    found = timed(timer())
    assert found.prefill.step_ms == pytest.approx((2.2 + 2.2 + 1.6) / 3)
    assert found.ttft_ms == pytest.approx((2 * 2.2 + 2 * 4.4 + 1.6) / 5)
    four, one = 1 + 0.04 + 0.16 + 0.6, 1 + 0.01 + 0.04 + 0.6
    assert found.tpot_ms == pytest.approx((4 * four + one) / 5)
    assert found.decode
    assert found.decode.step_ms == pytest.approx((four + one) / 2)


def test_only_the_busiest_rank_counts() -> None:
    """Both active experts are on rank 0 of 2; with four ranks each has one."""
    assert timed(timer(ranks=2)).tpot_ms == pytest.approx(timed(timer()).tpot_ms)
    assert timed(timer(ranks=4)).tpot_ms == pytest.approx((4 * 1.5 + 1.35) / 5)


def test_a_phase_without_a_cost_model_is_not_timed() -> None:
    found = timed(timer("n = 3 steps, 50 are needed"))
    assert (found.ttft_ms, found.prefill.step_ms) == (None, None)
    assert found.times_reason == "prefill: no cost model: n = 3 steps, 50 are needed"
    assert found.tpot_ms == timed(timer()).tpot_ms
