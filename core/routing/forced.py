"""Checks the gate log of a run against the dose (target imbalance) that was requested."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from core.experiment.dose import NAME, Dose
from core.recorder.gatescope_recorder import dose as distribution
from core.recorder.gatescope_recorder.order import Order, dose_of
from core.routing import excess
from core.stats.arrays import Floats, Ints

if TYPE_CHECKING:
    from core.routing.gatelog import GateLog


SLACK = 0.02  # of the level: tolerated difference on top of three standard errors


class Check:
    """Checks the gate log of one run, part by part, against the requested dose."""

    def __init__(self, dose: Dose | None, label: str, order: Order) -> None:
        """`label`: the run's in the log; `dose`: None where natural routing was requested."""
        self._dose, self._label, self._order = dose, label, order
        self._mixed = self._choices = self._top_k = 0
        self._counts: Floats = np.zeros(1)
        self._squares: list[Floats] = [np.zeros(0)]
        self._weights: list[Floats] = [np.zeros(0)]

    def add(self, part: GateLog) -> None:
        """Take in the next part of the log."""
        own = part.segments.get(self._label)
        if own is None:
            return
        self._mixed += mixed(part, own, self._label)
        self._top_k = part.top_k
        self._counts = self._counts + part.loads[own > 0].sum(axis=(0, 1), dtype=np.float64)
        self._choices += int(part.tokens[own > 0].sum()) * part.loads.shape[1]
        if self._dose and self._dose.pattern == "rotating":
            squares, weights = _excess_squared(part, own)
            self._squares.append(squares)
            self._weights.append(weights)

    def wrong(self) -> str:
        """Why the run does not count as forced: its steps mix doses, or the recorded experts do not
        have the requested distribution. Empty if nothing is wrong.
        """
        if self._mixed:
            return mixing(self._mixed)
        if self._dose is None:
            return ""
        if not self._choices:
            return f"{NAME} is not confirmed: the gate log holds no step of this run"
        distance, noise = self._distance(self._dose)
        if distance > SLACK * self._dose.level + 3 * noise:
            far = f"the recorded expert load is a CV of {distance:.3f} away from it"
            return f"requested {self._dose}; {far}: routing was not forced as requested"
        return ""

    def _distance(self, dose: Dose) -> tuple[float, float]:
        if dose.pattern == "rotating":
            squares, weights = np.concatenate(self._squares), np.concatenate(self._weights)
            return _step_distance(dose, squares, weights)
        return _distance(dose, self._counts, self._choices, self._order, self._top_k)


def mixing(count: int) -> str:
    """What is wrong with so many steps of `mixed`."""
    steps = "1 step" if count == 1 else f"{count} steps"
    return f"{steps} with tokens of another dose (target imbalance) too: routed naturally"


def mixed(part: GateLog, own: Ints, label: str) -> int:
    """How many steps hold tokens of this run and of a run with another dose."""
    others = [
        tokens > 0 for name, tokens in part.segments.items() if dose_of(name) != dose_of(label)
    ]
    return int(((own > 0) & np.any(others, axis=0)).sum()) if others else 0


def _distance(
    dose: Dose, counts: Floats, tokens: int, order: Order, top_k: int
) -> tuple[float, float]:
    """Distance of the recorded expert shares from the requested ones, as a CV, and the distance
    that chance alone makes."""
    experts = len(counts)
    want = distribution.law(dose.label, experts, top_k, order.ranks).shares(experts, top_k)
    distance = np.sqrt(np.mean((counts / counts.mean() - want / want.mean()) ** 2))
    return float(distance), float(np.sqrt((experts / top_k - 1) / tokens))


def _excess_squared(part: GateLog, own: Ints) -> tuple[Floats, Floats]:
    """excess² of each layer in each of the run's steps, and the tokens that weigh it."""
    some = (own > 0) & (part.tokens > 1)
    loads, tokens = part.loads[some].astype(np.float64), part.tokens[some][:, None]
    squares = excess.squared(loads, tokens, part.top_k)
    return squares.ravel(), np.broadcast_to(tokens, squares.shape).ravel().astype(np.float64)


def _step_distance(dose: Dose, square: Floats, weight: Floats) -> tuple[float, float]:
    """As `_distance`, for a rotating hot set, which moves from step to step: from the excess CV of
    single steps, weighted by tokens."""
    if len(square) < 2:
        return 0.0, 0.0
    scaled = square * weight / weight.mean()
    error = float(scaled.std() / np.sqrt(len(scaled)))
    seen = float(np.sqrt(max(0.0, float(scaled.mean()))))
    return abs(seen - dose.level), error / (2 * max(dose.level, 0.5 * float(np.sqrt(error)), 1e-12))
