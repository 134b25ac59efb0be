"""What a run did over time, a value a sample, from the samples that the snapshot keeps."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from core.experiment.events import Arrived, Sampled
from core.experiment.state import Live

Values = list[float | None]


class Trend(NamedTuple):
    """One quantity. `now`: its value on screen, if that is not the last one. `role`: its colour."""

    name: str
    values: Values
    digits: int = 0
    role: str = ""
    now: float | None = None

    @property
    def last(self) -> float | None:
        """The newest value that is known."""
        if self.now is not None:
            return self.now
        return next((v for v in reversed(self.values) if v is not None), None)


def rates(samples: Sequence[Sampled], field: str) -> Values:
    """Growth per second of a counter between neighbouring samples."""
    return [
        max(0.0, (getattr(b, field) - getattr(a, field)) / (b.at - a.at))
        for a, b in itertools.pairwise(samples)
    ]


def in_flight(live: Live, last: Sampled | None) -> int | None:
    """Requests sent and not ended; requests may have ended since the last sample."""
    return max(last.sent - live.finished, 0) if last else None


def latencies(samples: Sequence[Sampled], role: str = "") -> list[Trend]:
    """Medians of what arrived in each second, and the throughput; in the backend's colour."""
    arrived = [s.arrived or Arrived() for s in samples]
    return [
        Trend("TTFT p50", [a.ttft_ms for a in arrived], 1, role),
        Trend("ITL p50", [a.itl_ms for a in arrived], 1, role),
        Trend("out tok/s", rates(samples, "output_tokens"), 0, role),
    ]


def imbalance(samples: Sequence[Sampled]) -> list[Trend]:
    """The router over the steps of each second."""
    seen = [s.imbalance for s in samples]
    return [
        Trend("router CV", [x.cv if x else None for x in seen], 3, "warn"),
        Trend("excess CV", [x.excess_cv if x else None for x in seen], 3, "warn"),
        Trend("busiest rank", [x.rank_imbalance if x else None for x in seen], 2, "warn"),
    ]


def load(
    samples: Sequence[Sampled], live: Live | None, newest: Sampled | None = None
) -> list[Trend]:
    """What the server has to do."""
    flight = None if live is None else in_flight(live, newest)
    found = [Trend("in flight", [float(s.sent - s.finished) for s in samples], 0, "", flight)]
    if any(s.server for s in samples):
        servers = [s.server for s in samples]
        found += [
            Trend("waiting", [None if x is None else float(x.waiting) for x in servers]),
            Trend("KV cache %", [None if x is None else x.kv_cache * 100 for x in servers]),
        ]
    return [*found, Trend("req/s", rates(samples, "finished"), 1)]


def tpot(samples: Sequence[Sampled], role: str = "") -> Trend:
    return Trend("TPOT p50", [s.arrived.tpot_ms if s.arrived else None for s in samples], 1, role)
