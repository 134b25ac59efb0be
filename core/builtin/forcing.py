"""Forced routing in the built-in engine: the experts of a step's tokens, if its requests ask for a
dose or replay a recorded run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from core.builtin.weights import Ints, Shape
from core.recorder.gatescope_recorder.dose import Course, Cut
from core.recorder.gatescope_recorder.order import Order, dose_of
from core.recorder.gatescope_recorder.replay import phase_of


class Forcing:
    """Chooses the experts of each step, from pools or recorded runs. DoseError if a dose is
    unreachable, or a recorded run does not fit the model."""

    def __init__(self, order: Order, shape: Shape, max_tokens: int) -> None:
        self.order, self.shape = order, shape
        self._course = Course(order, shape.experts, shape.top_k, shape.layers, max_tokens)

    def experts(self, segments: Sequence[str], tokens: int, prefill_tokens: int) -> Ints | None:
        """Experts [layers, tokens, top_k] of the next step; None if its routing is natural or it
        mixes doses. `segments`: of its requests."""
        found = self._course.next(
            map(dose_of, segments), tokens, run=min(segments), phase=phase_of(prefill_tokens)
        )
        if not isinstance(found, Cut):
            return None if found is None else found.astype(np.int64)
        starts = found.start + self._course.stagger * np.arange(self.shape.layers)
        chosen = self._course.pools[found.dose][starts[:, None] + np.arange(tokens)]
        return (chosen.astype(np.int64) + found.shift) % self.shape.experts
