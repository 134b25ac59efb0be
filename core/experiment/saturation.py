"""Notices, while a point of a search is measured, that it has missed its objective whatever comes:
the queue grows, and the rest of the point would only take time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping

from core.experiment import events
from core.experiment.events import AnyEvent


class Saturation:
    """Told every event of a start; true once, when more than `allowed` requests have missed a limit
    of `slo`. Those count that ended too late, and those that have waited for their first token for
    longer than its limit."""

    def __init__(
        self,
        slo: Mapping[str, float],
        allowed: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._slo, self._allowed, self._clock = slo, allowed, clock
        self._sent: deque[tuple[float, int]] = deque()  # when, and how many were sent by then
        self._missed = 0
        self._is_over = False

    def __call__(self, event: AnyEvent) -> bool:
        waiting = 0
        match event:
            case events.RunStarted():
                self._sent.clear()
            case events.RequestFinished():
                self._missed += not meets(event, self._slo)
            case events.Sampled():
                waiting = self._unanswered(event)
        if self._is_over or self._missed + waiting <= self._allowed:
            return False
        self._is_over = True
        return True

    def _unanswered(self, event: events.Sampled) -> int:
        """Requests that were sent longer ago than the limit of TTFT and have no token yet."""
        limit = self._slo.get("ttft_ms")
        now = self._clock()
        self._sent.append((now, event.sent))
        if limit is None:
            return 0
        due = [sent for at, sent in self._sent if at <= now - limit / 1000]
        return max(0, due[-1] - event.first_tokens) if due else 0


def meets(request: events.RequestFinished, slo: Mapping[str, float]) -> bool:
    """Whether a request met every limit; a single token has no TPOT to limit."""
    if request.error:
        return False
    times = {"ttft_ms": request.ttft_ms, "tpot_ms": request.tpot_ms, "e2e_ms": request.e2e_ms}
    if request.output_tokens == 1:
        times["tpot_ms"] = 0.0
    return all((value := times[name]) is not None and value <= slo[name] for name in slo)
