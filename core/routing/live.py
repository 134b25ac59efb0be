"""What the router's last steps show while a run is still going."""

from __future__ import annotations

import numpy as np

from core.errors import GateLogError
from core.experiment.events import LiveImbalance
from core.routing import imbalance
from core.routing.gatelog import GateLog


def measure(log: GateLog, label: str) -> LiveImbalance | None:
    """The imbalance of the run's own steps in `log`; None if it has none there."""
    try:
        measured = imbalance.measure_segment(log, label)
    except GateLogError:
        return None
    if measured.per_step_cv is None:
        return None
    by_layer = log.of(label).loads.sum(axis=0)
    layer, expert = np.unravel_index(int(by_layer.argmax()), by_layer.shape)
    return LiveImbalance(
        cv=measured.per_step_cv,
        excess_cv=measured.excess_cv,
        rank_imbalance=measured.rank_imbalance,
        layer=log.numbers[int(layer)],
        expert=int(expert),
        share=float(by_layer[layer, expert] / by_layer[layer].sum()),
    )
