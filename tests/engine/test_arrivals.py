"""What is known of a run while it goes on."""

from __future__ import annotations

import numpy as np
import pytest

from core.engine.arrivals import Arrivals, Gaps
from core.experiment.events import Arrived
from core.load.record import Progress, RequestRecord


def test_ttfts_so_far_and_medians_since_the_last_sample() -> None:
    arrivals = Arrivals()
    assert (arrivals.ttft(), arrivals.itl(), arrivals.take()) == (None, None, None)
    assert arrivals.add(Progress(2, 2, 2, ttfts_ns=(10_000_000, 30_000_000)))  # news: a TTFT
    assert arrivals.add(Progress(2, 2, 3, gaps_ns=(5_000_000,)))  # an ITL
    assert not arrivals.add(Progress(2, 2, 4))
    assert arrivals.take() == Arrived(ttft_ms=20.0, itl_ms=5.0)
    assert arrivals.take() is None
    arrivals.add(Progress(ttfts_ns=(50_000_000,)))
    ended = RequestRecord(0, "q", 0, 0, 0, 9, 1, [1_000_000, 9_000_000], [1, 1], 3, 2)
    arrivals.end(ended)
    assert arrivals.take() == Arrived(ttft_ms=50.0, tpot_ms=8.0)
    so_far = arrivals.ttft()
    assert so_far is not None
    assert (so_far.n, so_far.mean, so_far.p50, so_far.max) == (3, 30.0, 30.0, 50.0)


def test_percentiles_of_gaps_are_within_half_a_percent() -> None:
    gaps_ns = np.random.default_rng(0).lognormal(np.log(2e7), 0.8, 5000).astype(np.int64)
    gaps = Gaps()
    for part in np.array_split(gaps_ns, 7):
        gaps.add(part.tolist())
    found = gaps.latency()
    assert found is not None
    assert found.n == 5000
    assert found.mean == pytest.approx(gaps_ns.mean() / 1e6)
    assert found.max == gaps_ns.max() / 1e6
    exact = np.percentile(gaps_ns, [50, 90, 99], method="lower") / 1e6
    assert [found.p50, found.p90, found.p99] == pytest.approx(exact.tolist(), rel=0.0051)


def test_a_gap_of_nothing_is_one() -> None:
    gaps = Gaps()
    gaps.add([0, 0])
    found = gaps.latency()
    assert found is not None
    assert (found.n, found.max) == (2, 1e-6)
