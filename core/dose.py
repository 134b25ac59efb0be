"""The dose: a run whose routing is forced to a chosen imbalance, so that skew is set and nothing else changes.

`Dose.level` is the population CV over experts of the expected counts. The distribution itself is in the recorder's
package, since vLLM's workers need it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np

from core import steps
from core.recorder.gatescope_recorder import dose as forced
from core.recorder.gatescope_recorder.dose import DoseError, Order
from core.steps import Floats

if TYPE_CHECKING:
    from core.config import Backend, Config
    from core.gatelog import GateLog

Pattern = Literal["hot-experts", "hot-rank", "spread", "rotating"]
NAME = "forced routing"
SLACK = 0.02  # of the level, by which a record may differ from it beside its noise


class Dose(msgspec.Struct, frozen=True):
    """Routing forced to `level`, the CV of expert load aimed at, with the heat where `pattern` says."""

    pattern: Pattern
    level: float

    @property
    def label(self) -> str:
        """`hot-rank~0.5`: behind another `~`, the end of a run's label."""
        return f"{self.pattern}~{self.level:g}"

    def __str__(self) -> str:
        return f"{NAME}: {self.pattern}, CV {self.level:g}"


def of_label(label: str) -> Dose | None:
    """The dose of a run's label or its gate-log segment; None where its routing was natural."""
    found = forced.dose_of(label)
    if not found:
        return None
    pattern, level = forced.parse(found)
    return Dose(msgspec.convert(pattern, Pattern), level)


# --- before anything starts ---------------------------------------------------------------------------------------


def order(config: Config, doses: Sequence[Dose]) -> Order | None:
    """What every server of this experiment may be asked to force; None where that is nothing."""
    if not doses:
        return None
    labels = tuple(dose.label for dose in sorted(set(doses), key=lambda d: (d.pattern, d.level)))
    rotate_steps = config.dose.rotate_steps if config.dose else 64
    return Order(labels, ranks(config.backends), rotate_steps, config.experiment.seed)


def ranks(backends: Sequence[Backend]) -> int:
    """The expert-parallel ranks that hot-rank and spread refer to, at every backend alike: those of the backends that
    have them, else the ranks of the widest. DoseError where backends have different ones."""
    sizes = {backend.ranks for backend in backends if backend.expert_parallel and backend.ranks > 1}
    if len(sizes) > 1:
        raise DoseError(
            f"backends of {' and '.join(map(str, sorted(sizes)))} expert-parallel ranks have no common dose"
        )
    return sizes.pop() if sizes else max(backend.ranks for backend in backends)


def check(order: Order, experts: int, top_k: int) -> None:
    """DoseError for the first dose that a model of this shape cannot be given."""
    for label in order.labels:
        pattern, level = forced.parse(label)
        try:
            forced.weight_for(level, len(forced.hot_experts(pattern, experts, top_k, order.ranks)), experts, top_k)
        except DoseError as error:
            raise DoseError(f"{label}: {error}") from None


# --- afterwards ---------------------------------------------------------------------------------------------------


def why_not_forced(dose: Dose | None, label: str, parts: Sequence[GateLog], order: Order | None) -> str:
    """What the gate log says against a run: its steps mix doses, or its experts were not chosen as `order` has it.
    Empty where nothing is wrong. `label` names the run's steps in `parts`.
    """
    mixed = sum(_mixed(part, label) for part in parts)
    if mixed:
        return f"{mixed} steps hold tokens of requests with another dose, and were routed naturally"
    if dose is None or order is None:
        return ""
    counts, tokens = _counts(parts, label)
    if not tokens:
        return f"{NAME} is not confirmed: the gate log holds no step of this run"
    if dose.pattern == "rotating":
        distance, noise = _step_distance(dose, parts, label)
    else:
        distance, noise = _distance(dose, counts, tokens, order, parts[0].top_k)
    if distance > SLACK * dose.level + 3 * noise:
        return f"asked for {dose}; what was recorded is a CV of {distance:.3f} away from that: it was not forced"
    return ""


def _mixed(part: GateLog, label: str) -> int:
    """Steps that hold tokens of this run and of one with another dose."""
    own = part.segments.get(label)
    if own is None:
        return 0
    others = [tokens > 0 for name, tokens in part.segments.items() if forced.dose_of(name) != forced.dose_of(label)]
    return int(((own > 0) & np.any(others, axis=0)).sum()) if others else 0


def _counts(parts: Sequence[GateLog], label: str) -> tuple[Floats, int]:
    """Σ over the run's own steps and over layers of each expert's load, and how many choices of a token that were."""
    experts = parts[0].loads.shape[2] if parts else 0
    counts, tokens = np.zeros(experts), 0
    for part in parts:
        mine = part.segments.get(label, np.zeros(len(part.tokens), np.int64)) > 0
        counts += part.loads[mine].sum(axis=(0, 1), dtype=np.float64)
        tokens += int(part.tokens[mine].sum()) * part.loads.shape[1]
    return counts, tokens


def _distance(dose: Dose, counts: Floats, tokens: int, order: Order, top_k: int) -> tuple[float, float]:
    """How far the recorded shares of experts are from those asked for, as a CV, and how far chance alone takes them."""
    experts = len(counts)
    hot = list(forced.hot_experts(dose.pattern, experts, top_k, order.ranks))
    weight = forced.weight_for(dose.level, len(hot), experts, top_k)
    p_hot, p_cold = forced.inclusion(weight, len(hot), experts, top_k)
    want = np.full(experts, p_cold)
    want[hot] = p_hot
    distance = np.sqrt(np.mean((counts / counts.mean() - want / want.mean()) ** 2))
    return float(distance), float(np.sqrt((experts / top_k - 1) / tokens))


def _step_distance(dose: Dose, parts: Sequence[GateLog], label: str) -> tuple[float, float]:
    """The same for a rotating hot set, which is somewhere else at other steps: from the CV that each step shows beyond
    its noise floor, weighted by tokens."""
    squares: list[Floats] = [np.zeros(0)]
    weights: list[Floats] = [np.zeros(0)]
    for part in parts:
        own = (part.segments.get(label, np.zeros(len(part.tokens), np.int64)) > 0) & (part.tokens > 1)
        loads, tokens = part.loads[own].astype(np.float64), part.tokens[own][:, None]
        excess = steps.cv(loads) ** 2 - steps.floor_squared(loads, tokens, part.top_k)
        squares.append(excess.ravel())
        weights.append(np.broadcast_to(tokens, excess.shape).ravel().astype(np.float64))
    square, weight = np.concatenate(squares), np.concatenate(weights)
    if len(square) < 2:
        return 0.0, 0.0
    scaled = square * weight / weight.mean()
    error = float(scaled.std() / np.sqrt(len(scaled)))
    seen = float(np.sqrt(max(0.0, float(scaled.mean()))))
    return abs(seen - dose.level), error / (2 * max(dose.level, 0.5 * float(np.sqrt(error)), 1e-12))
