"""A cost that is known by construction: every step lasts as long as a rule says, if the model
itself is quicker."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from core.builtin.weights import Ints

SPIN_S = 2e-4  # a sleep ends late by about as much


@dataclass(frozen=True, slots=True)
class Pace:
    """A step lasts step_us + request_us · requests + active_us · Σ over layers of the busiest
    rank's active experts."""

    step_us: float
    request_us: float
    active_us: float

    @classmethod
    def parse(cls, text: str) -> Pace:
        """Of "4000,50,300". ValueError for anything else."""
        values = [float(part) for part in text.split(",")]
        if len(values) != 3 or not all(0 <= value < 1e7 for value in values):
            raise ValueError(f"expected three numbers of µs, got {text!r}")
        return cls(*values)

    def us(self, requests: int, counts: Ints, placement: tuple[int, ...]) -> float:
        """`counts` [layers, experts]; `placement[e]`: the rank of expert e, empty: one has all."""
        home = np.array(placement or [0] * counts.shape[1])
        by_rank = [(counts[:, home == rank] > 0).sum(axis=1) for rank in range(home.max() + 1)]
        active = int(np.max(by_rank, axis=0).sum())
        return self.step_us + self.request_us * requests + self.active_us * active

    def hold(self, start_ns: int, us: float) -> None:
        """Wait until the step that began at `start_ns` has lasted so long."""
        end = start_ns + us * 1e3
        while (left := (end - time.perf_counter_ns()) / 1e9) > 0:
            time.sleep(max(0.0, left - SPIN_S))
