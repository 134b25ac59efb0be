"""Forced routing as it is planned: what servers may be asked to force, and whether they can."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from core.experiment.dose import Dose
from core.recorder.gatescope_recorder import dose as forced
from core.recorder.gatescope_recorder.order import DoseError, Order

if TYPE_CHECKING:
    from core.experiment.config import Backend, Config


def order(config: Config, doses: Sequence[Dose]) -> Order | None:
    """What every server of this experiment may be asked to force; None if nothing."""
    if not doses:
        return None
    labels = tuple(dose.label for dose in sorted(set(doses), key=lambda d: (d.pattern, d.level)))
    rotate_steps = config.dose.rotate_steps if config.dose else 64
    return Order(labels, ranks(config.backends), rotate_steps, config.experiment.seed)


def ranks(backends: Sequence[Backend]) -> int:
    """The expert-parallel ranks that hot-rank and spread refer to, at every backend alike: those of
    the backends that have them, else the ranks of the widest. DoseError where backends have
    different ones."""
    sizes = {backend.ranks for backend in backends if backend.expert_parallel and backend.ranks > 1}
    if len(sizes) > 1:
        raise DoseError(
            f"backends of {' and '.join(map(str, sorted(sizes)))} expert-parallel ranks"
            " have no common dose"
        )
    return sizes.pop() if sizes else max(backend.ranks for backend in backends)


def check(order: Order, experts: int, top_k: int) -> None:
    """DoseError for the first dose that a model of this shape cannot be given."""
    for label in order.labels:
        try:
            forced.law(label, experts, top_k, order.ranks)
        except DoseError as error:
            raise DoseError(f"{label}: {error}") from None
