"""Effective numbers of steps and layers, by hand; and the floor of prompts that repeat tokens."""

from __future__ import annotations

import numpy as np
import pytest
from support.synthetic import as_log, routed

from core.routing import imbalance, repeats
from core.routing.meter import Meter
from core.routing.recurrence import LAGS, SAMPLED, WHOLE, Recurrence
from core.routing.repeats import Repeats

FAIR = np.ones(8)


def fair(seed: int, steps: int, layers: int = 4) -> np.ndarray:
    return routed(np.random.default_rng(seed), [30] * steps, layers, FAIR)


def looked_at(loads: np.ndarray, part: int = 10_000) -> Recurrence:
    found = Recurrence(*loads.shape[1:])
    for first in range(0, len(loads), part):
        some = loads[first : first + part]
        found.add(some, np.arange(len(some)))
    return found


class TestSteps:
    def test_the_same_step_over_and_over_counts_as_one(self) -> None:
        # ρ is 1 at every lag, but for what chance shows: 1 + 2 Σ (1 - τ/S) = S
        found = looked_at(np.repeat(fair(1, 1), 100, axis=0))
        assert found.effective_steps(100) == pytest.approx(1, rel=0.02)

    @pytest.mark.parametrize("period", [2, 5, 16])
    def test_a_loop_counts_as_its_period(self, period: int) -> None:
        loads = fair(2, period)[np.arange(960) % period]
        assert looked_at(loads).effective_steps(960) == pytest.approx(period, rel=0.35)

    def test_independent_steps_count_in_full(self) -> None:
        assert looked_at(fair(3, 900)).effective_steps(900) > 600

    def test_by_hand(self) -> None:
        # two experts, deviations ±1: + + + -, so Σ of products by lag 4, 1, 0, -1
        found = looked_at(np.array([[[2, 0]], [[2, 0]], [[2, 0]], [[0, 2]]]))
        assert found.products[:5].tolist() == [8, 2, 0, -2, 0]  # two experts each
        assert found.pairs[:5].tolist() == [4, 3, 2, 1, 0]

    @pytest.mark.parametrize("part", [1, 7, 64])
    def test_parts_change_nothing(self, part: int) -> None:
        loads = fair(4, 1200)  # 512 steps, and 128 from step 1024 on
        whole, parts = looked_at(loads), looked_at(loads, part)
        assert parts.products == pytest.approx(whole.products, rel=1e-4, abs=1e-3)
        assert parts.pairs.tolist() == whole.pairs.tolist()
        assert parts.shared == pytest.approx(whole.shared, rel=1e-4, abs=1e-3)

    @pytest.mark.parametrize("part", [100, 10_000])
    def test_a_long_log_is_sampled_and_memory_is_bounded(self, part: int) -> None:
        found = looked_at(fair(5, 3000, 1), part)  # steps 0 to 511, 1024 to 1151, 2304 to 2431
        assert found.pairs[0] == WHOLE + 2 * SAMPLED
        assert found.pairs[LAGS] == WHOLE - LAGS + 2 * (SAMPLED - LAGS)
        assert len(found.recent) <= LAGS


class TestLayers:
    def test_equal_layers_count_as_one(self) -> None:
        assert looked_at(np.repeat(fair(6, 50, 1), 4, axis=1)).effective_layers() == pytest.approx(
            1
        )

    def test_two_pairs_of_equal_layers_count_as_two(self) -> None:
        loads = np.repeat(fair(7, 400, 2), 2, axis=1)
        assert looked_at(loads).effective_layers() == pytest.approx(2, rel=0.05)

    def test_others_count_in_full(self) -> None:
        assert looked_at(fair(8, 400)).effective_layers() == pytest.approx(4, rel=0.05)


class TestWhatIsShown:
    def test_a_loop_of_a_fair_router_is_no_finding_and_the_estimate_is_the_same(self) -> None:
        base = fair(9, 6)
        loads = base[np.arange(120) % 6]
        found = imbalance.measure_segment(as_log(loads), "001")
        cv2 = loads.var(-1) / loads.mean(-1) ** 2
        floor2 = imbalance.floor_squared(loads.astype(float), np.full((120, 1), 30), 2)
        assert found.excess_squared == pytest.approx(float((cv2 - floor2).mean()))
        assert found.effective_steps == pytest.approx(6, rel=0.2)
        assert found.excess_cv is None
        assert str(found.aggregated_excess_cv_reason).startswith("the steps show none: ")


class TestRepeats:
    def test_by_hand(self) -> None:
        # a a b | a c: of 6 pairs of two prompts' tokens 2 are alike (a with a)
        found = repeats.of([[1, 1, 2], [1, 3]])
        assert found is not None
        assert found.rate == pytest.approx(2 / 6)
        # partners in the own prompt: a 1, a 1, b 0 | 0, 0: 2/5; expected at that rate: the others
        # of the prompt are (9 + 4)/5 - 1 = 1.6, times 1/3
        assert found.own == 0.0  # 0.4 - 0.533 is below 0

    def test_a_prompt_that_repeats_itself_has_more_of_its_own(self) -> None:
        found = repeats.of([[1, 1, 1, 1], [2, 2, 2, 2]])
        assert found == Repeats(0.0, 3.0)
        assert found.widening(8) == 4.0  # two types of four: 2 independent tokens, not 8

    def test_a_single_prompt_and_none(self) -> None:
        assert repeats.of([[1, 1, 2]]) == Repeats(2 / 6, 0.0)
        assert repeats.of([]) is None
        assert repeats.of([[5, 5, 5], [5]]) is None

    def test_all_tokens_in_one_step_are_one_over_sum_f_squared(self) -> None:
        rng = np.random.default_rng(10)
        prompts = [rng.zipf(1.5, 100).clip(max=2000).tolist() for _ in range(30)]
        found = repeats.of(prompts)
        assert found is not None
        f = np.unique(np.concatenate(prompts), return_counts=True)[1] / 3000
        partners = found.own + 2999 * found.rate
        assert 3000 / (1 + partners) == pytest.approx(1 / (f**2).sum(), rel=0.01)

    def test_widens_the_floor_of_prompt_steps_alone(self) -> None:
        log = as_log(fair(11, 60), prefill=[30] * 20 + [0] * 40)
        meter = Meter()
        meter.add(log)
        plain = imbalance.of_meter(meter, "001")
        wide = imbalance.of_meter(meter, "001", Repeats(0.02, 0.1))
        assert plain.prefill is not None
        assert wide.prefill is not None
        assert plain.decode is not None
        assert wide.decode is not None
        assert plain.prefill.noise_floor is not None
        assert wide.prefill.noise_floor is not None
        widening = (wide.prefill.noise_floor / plain.prefill.noise_floor) ** 2
        assert widening == pytest.approx((1.1 + 29 * 0.02) / 0.98)
        assert wide.decode.noise_floor == plain.decode.noise_floor
        assert wide.prompt_repeats == Repeats(0.02, 0.1)
        assert wide.per_step_cv == plain.per_step_cv
