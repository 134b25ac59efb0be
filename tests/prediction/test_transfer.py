"""How prefill carries over to decode, in recorded datasets made by a known rule."""

from __future__ import annotations

import numpy as np
import pytest

from core.prediction import transfer
from core.prediction.recorded import Phases
from core.routing.expected import Planned

EVEN = np.full((2, 4), 0.25)
APART = np.array([[0.1, -0.1, 0, 0], [0, 0, 0.2, -0.2]])


def phases(carried: float, off: float = 0.0) -> Phases:
    """Six datasets that load experts 0 and 2 the more, the later they come; `carried` of it is in
    decode, whose excess² is 0.3 above its shares', and `off` more or less in turn."""
    by = np.linspace(-1, 1, 6)[:, None, None]
    decode = EVEN + carried * by * APART
    of_shares = 4 * (decode**2).sum(axis=2).mean(axis=1) - 1
    measured = of_shares + 0.3 + off * np.array([1, -1, 1, -1, 1, -1])
    return Phases(EVEN + by * APART, decode, measured, (0, 3))


def test_what_sets_a_dataset_apart_is_carried_over_by_the_slope() -> None:
    """Prefill shares 0.35, 0.15, 0.25, 0.25: half of it is 0.3, 0.2, 0.25, 0.25, of excess²
    4 · 0.255 - 1 = 0.02; layer 3, twice as far, 0.08; their mean with 0.3 more is 0.35."""
    learned = transfer.learn(phases(0.5))
    assert learned.slope == pytest.approx(0.5)
    assert learned.slope_interval == pytest.approx((0.5, 0.5), abs=1e-6)
    shares = learned.shares(EVEN + APART, [0, 3])
    np.testing.assert_allclose(shares, EVEN + 0.5 * APART, atol=1e-12)
    found = learned.phase(shares, 1, Planned(decode=8))
    assert found.excess_squared == pytest.approx(0.35)
    assert found.run_interval == pytest.approx((0.35, 0.35), abs=1e-9)
    assert found.noise_floor == pytest.approx((4 * (1 - (0.255 + 0.27) / 2) / 8) ** 0.5)
    (last,) = learned.shares((EVEN + APART)[1:], [3])
    np.testing.assert_allclose(last, [0.25, 0.25, 0.35, 0.15])


def test_the_interval_is_of_datasets_left_out() -> None:
    """Of six datasets off by ±0.1 each is off by 0.12 from the mean of the others; t(5) = 2.5706
    times that, and one more dataset."""
    learned = transfer.learn(phases(0.0, off=0.1))
    assert abs(learned.errors) == pytest.approx([0.12] * 6)
    found = learned.phase(EVEN, 1, Planned(decode=8))
    assert found.run_interval
    off = 2.5706 * 0.12 * (7 / 6) ** 0.5
    assert found.run_interval == pytest.approx((0.3 - off, 0.3 + off), abs=1e-4)
    assert found.excess_cv is None


def test_one_token_a_step_has_no_excess() -> None:
    found = transfer.learn(phases(0.5)).phase(EVEN, 1, Planned())
    assert (found.excess_cv, found.noise_floor, found.active_experts) == (None, None, 1.0)
