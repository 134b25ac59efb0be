"""What has arrived of a run that is still going: its TTFTs and ITLs so far, and since the last
sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from core.experiment.events import Arrived, Latency
from core.load import metrics
from core.load.record import Progress, RequestRecord
from core.stats.arrays import Floats

BUCKET = 0.01  # of a natural logarithm: a bucket's middle is within 0.5% of its values
BUCKETS = 2600  # 1 ns to 3 minutes


@dataclass(slots=True)
class Gaps:
    """Gaps between tokens in buckets of equal ratio: percentiles of a whole run in constant
    memory."""

    counts: Floats = field(default_factory=lambda: np.zeros(BUCKETS))
    sum_ns: float = 0.0
    max_ns: float = 0.0

    def add(self, gaps_ns: Sequence[int]) -> None:
        if not gaps_ns:
            return
        gaps = np.maximum(np.asarray(gaps_ns, np.float64), 1.0)
        places = np.minimum(np.rint(np.log(gaps) / BUCKET), BUCKETS - 1).astype(np.int64)
        self.counts += np.bincount(places, minlength=BUCKETS)
        self.sum_ns += float(gaps.sum())
        self.max_ns = max(self.max_ns, float(gaps.max()))

    def latency(self) -> Latency | None:
        """None if there are none."""
        n = int(self.counts.sum())
        if not n:
            return None
        below = self.counts.cumsum()
        places = np.searchsorted(below, np.array((0.5, 0.9, 0.99)) * (n - 1), side="right")
        p50, p90, p99 = np.minimum(np.exp(places * BUCKET), self.max_ns) / 1e6
        return Latency(
            n=n,
            mean=self.sum_ns / n / 1e6,
            p50=float(p50),
            p90=float(p90),
            p99=float(p99) if n >= metrics.MIN_FOR_P99 else None,
            max=self.max_ns / 1e6,
        )


@dataclass(slots=True)
class Arrivals:
    """One run's. `take` starts the next sample."""

    ttfts_s: list[float] = field(default_factory=list)  # every one so far
    gaps: Gaps = field(default_factory=Gaps)
    _taken: int = 0  # TTFTs in samples already taken
    _gaps_ns: list[int] = field(default_factory=list)
    _tpots_s: list[float] = field(default_factory=list)

    def add(self, progress: Progress) -> bool:
        """What the load client reports; whether it is the first TTFT, or the first ITL."""
        is_news = progress.kinds > bool(self.ttfts_s) + bool(self.gaps.sum_ns)
        self.ttfts_s += [ns / 1e9 for ns in progress.ttfts_ns]
        self.gaps.add(progress.gaps_ns)
        self._gaps_ns += progress.gaps_ns
        return is_news

    def end(self, record: RequestRecord) -> None:
        """A request that has ended."""
        if record.ok and (tpot := record.tpot_s) is not None:
            self._tpots_s.append(tpot)

    def ttft(self) -> Latency | None:
        found = metrics.summary(self.ttfts_s)
        return Latency(**asdict(found)) if found else None

    def itl(self) -> Latency | None:
        return self.gaps.latency()

    def take(self) -> Arrived | None:
        """The medians since the last call; None if nothing arrived."""
        new = self.ttfts_s[self._taken :], self._tpots_s, [ns / 1e9 for ns in self._gaps_ns]
        self._taken, self._tpots_s, self._gaps_ns = len(self.ttfts_s), [], []
        ttft, tpot, itl = (float(np.median(s)) * 1e3 if s else None for s in new)
        is_empty = ttft is None and tpot is None and itl is None
        return None if is_empty else Arrived(ttft_ms=ttft, tpot_ms=tpot, itl_ms=itl)
