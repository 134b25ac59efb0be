"""Holds the gate log of a run against the dose that was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from core.experiment.dose import NAME, Dose
from core.recorder.gatescope_recorder import dose as forced
from core.recorder.gatescope_recorder.order import Order, dose_of
from core.routing import steps
from core.stats.arrays import Floats, Ints

if TYPE_CHECKING:
    from core.routing.gatelog import GateLog


SLACK = 0.02  # of the level, by which a record may differ from it beside its noise


class Check:
    """Holds the gate log of one run, part by part, against the dose that was asked for."""

    def __init__(self, dose: Dose | None, label: str, order: Order) -> None:
        """`label` names the run's steps; `dose` is None where they were to be routed naturally."""
        self._dose, self._label, self._order = dose, label, order
        self._mixed = self._choices = self._top_k = 0
        self._counts: Floats = np.zeros(1)
        self._squares: list[Floats] = [np.zeros(0)]
        self._weights: list[Floats] = [np.zeros(0)]

    def add(self, part: GateLog) -> None:
        """The next part of the log."""
        own = part.segments.get(self._label)
        if own is None:
            return
        self._mixed += _mixed(part, own, self._label)
        self._top_k = part.top_k
        self._counts = self._counts + part.loads[own > 0].sum(axis=(0, 1), dtype=np.float64)
        self._choices += int(part.tokens[own > 0].sum()) * part.loads.shape[1]
        if self._dose and self._dose.pattern == "rotating":
            squares, weights = _excess_squared(part, own)
            self._squares.append(squares)
            self._weights.append(weights)

    def wrong(self) -> str:
        """What the log says against the run: its steps mix doses, or its experts were not chosen as
        the order has it. Empty where nothing is wrong.
        """
        if self._mixed:
            return f"{self._mixed} steps hold tokens of requests with another dose, and were routed naturally"
        if self._dose is None:
            return ""
        if not self._choices:
            return f"{NAME} is not confirmed: the gate log holds no step of this run"
        if self._dose.pattern == "rotating":
            distance, noise = _step_distance(
                self._dose, np.concatenate(self._squares), np.concatenate(self._weights)
            )
        else:
            distance, noise = _distance(
                self._dose, self._counts, self._choices, self._order, self._top_k
            )
        if distance > SLACK * self._dose.level + 3 * noise:
            far = f"what was recorded is a CV of {distance:.3f} away from that"
            return f"asked for {self._dose}; {far}: it was not forced"
        return ""


def _mixed(part: GateLog, own: Ints, label: str) -> int:
    """Steps that hold tokens of this run and of one with another dose."""
    others = [
        tokens > 0 for name, tokens in part.segments.items() if dose_of(name) != dose_of(label)
    ]
    return int(((own > 0) & np.any(others, axis=0)).sum()) if others else 0


def _distance(
    dose: Dose, counts: Floats, tokens: int, order: Order, top_k: int
) -> tuple[float, float]:
    """How far the recorded shares of experts are from those asked for, as a CV, and how far chance
    alone takes them."""
    experts = len(counts)
    hot = list(forced.hot_experts(dose.pattern, experts, top_k, order.ranks))
    weight = forced.weight_for(dose.level, len(hot), experts, top_k)
    p_hot, p_cold = forced.inclusion(weight, len(hot), experts, top_k)
    want = np.full(experts, p_cold)
    want[hot] = p_hot
    distance = np.sqrt(np.mean((counts / counts.mean() - want / want.mean()) ** 2))
    return float(distance), float(np.sqrt((experts / top_k - 1) / tokens))


def _excess_squared(part: GateLog, own: Ints) -> tuple[Floats, Floats]:
    """CV² beyond the noise floor of each layer of the run's steps, and the tokens that it
    weighs."""
    some = (own > 0) & (part.tokens > 1)
    loads, tokens = part.loads[some].astype(np.float64), part.tokens[some][:, None]
    excess = steps.cv(loads) ** 2 - steps.floor_squared(loads, tokens, part.top_k)
    return excess.ravel(), np.broadcast_to(tokens, excess.shape).ravel().astype(np.float64)


def _step_distance(dose: Dose, square: Floats, weight: Floats) -> tuple[float, float]:
    """The same for a rotating hot set, which is somewhere else at other steps: from the CV that
    each step shows beyond its noise floor, weighted by tokens."""
    if len(square) < 2:
        return 0.0, 0.0
    scaled = square * weight / weight.mean()
    error = float(scaled.std() / np.sqrt(len(scaled)))
    seen = float(np.sqrt(max(0.0, float(scaled.mean()))))
    return abs(seen - dose.level), error / (2 * max(dose.level, 0.5 * float(np.sqrt(error)), 1e-12))
