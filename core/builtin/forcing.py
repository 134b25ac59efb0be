"""Forced routing in the built-in engine: the experts of a step's tokens, if its requests ask for a
dose."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from core.builtin.weights import Ints, Shape
from core.recorder.gatescope_recorder.dose import Course
from core.recorder.gatescope_recorder.order import Order, dose_of


class Forcing:
    """Chooses the experts of each step, from pools. DoseError if a dose is unreachable."""

    def __init__(self, order: Order, shape: Shape, max_tokens: int) -> None:
        self.order, self.shape = order, shape
        self._course = Course(order, shape.experts, shape.top_k, shape.layers, max_tokens)

    def experts(self, segments: Iterable[str], tokens: int) -> Ints | None:
        """Experts [layers, tokens, top_k] of the next step; None if its routing is natural or it
        mixes doses."""
        cut = self._course.next(map(dose_of, segments), tokens)
        if cut is None:
            return None
        starts = cut.start + self._course.stagger * np.arange(self.shape.layers)
        chosen = self._course.pools[cut.dose][starts[:, None] + np.arange(tokens)]
        return (chosen.astype(np.int64) + cut.shift) % self.shape.experts
