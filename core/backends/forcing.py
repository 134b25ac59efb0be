"""Forced routing as it is planned: what servers may be asked to force, and whether they can."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from core.experiment.dose import Dose, Replay
from core.recorder.gatescope_recorder import dose as forced
from core.recorder.gatescope_recorder.order import DoseError, Order

if TYPE_CHECKING:
    from core.experiment.config import Config
    from core.experiment.tables import Backend


def order(config: Config, imposed: Sequence[Dose | Replay], recording: str = "") -> Order | None:
    """What every server of this experiment may be asked to force; None if nothing. `recording`: the
    folder of the loads that are replayed."""
    if not imposed:
        return None
    doses = {one for one in imposed if isinstance(one, Dose)}
    labels = tuple(dose.label for dose in sorted(doses, key=lambda d: (d.pattern, d.level)))
    replays = tuple(sorted({one.label for one in imposed if isinstance(one, Replay)}))
    rotate_steps = config.dose.rotate_steps if config.dose else 64
    shared = ranks(config.backends) if doses else 1
    return Order(
        labels,
        shared,
        rotate_steps,
        config.experiment.seed,
        replays,
        recording if replays else "",
    )


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
