"""The highest load that meets an objective: which load comes next, and when a point is over."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError
from core.experiment import config, saturation, search
from core.experiment.events import AnyEvent, RequestFinished, RunStarted, Sampled
from core.experiment.saturation import Saturation
from core.experiment.search import Search

SLO = {"ttft_ms": 500.0, "tpot_ms": 50.0}


def found(asked: Search, limit: float, begin: float | None = None) -> dict[float, bool]:
    """The points of a search where every load up to `limit` meets the objective."""
    points: dict[float, bool] = {}
    while (load := search.next_load(asked, points, begin)) is not None:
        assert load not in points
        assert len(points) < 60
        points[load] = load <= limit
    return points


@given(limit=st.floats(0.5, 2000), resolution=st.floats(0.5, 50))
def test_a_rate_is_found_to_the_resolution(limit: float, resolution: float) -> None:
    asked = Search(over="request_rate", slo=SLO, low=1, high=1000, resolution_pct=resolution)
    meeting, failing = search.bracket(found(asked, limit))
    if limit < 1:
        assert (meeting, failing) == (None, 1)
    elif limit >= 1000:
        assert (meeting, failing) == (1000, None)
    else:
        assert meeting
        assert failing
        assert meeting <= limit < failing <= meeting * (1 + resolution / 100)


@given(limit=st.integers(1, 300))
def test_a_number_in_flight_is_found_exactly_from_below(limit: int) -> None:
    asked = Search(slo=SLO, high=256, resolution_pct=0.1)
    points = found(asked, limit)
    meeting, failing = search.bracket(points)
    assert meeting == min(limit, 256)
    assert failing == (None if limit >= 256 else limit + 1)
    assert len(points) <= 2 * math.log2(limit) + 3
    assert max(points) <= max(2 * limit, 1)  # never far into saturation


@given(limit=st.floats(0.5, 2000))
def test_a_later_start_finds_the_same_on_its_own(limit: float) -> None:
    asked = Search(over="request_rate", slo=SLO, low=1, high=1000)
    first = found(asked, limit)
    again = found(asked, limit, search.begin_again(asked, first))
    assert search.bracket(again) == search.bracket(first)
    assert len(again) <= len(first)


@given(limit=st.integers(0, 300), begin=st.sampled_from([1, 2, 4, 8, 64, 256]))
def test_a_start_whose_limit_lies_below_comes_down(limit: int, begin: int) -> None:
    asked = Search(slo=SLO, high=256, resolution_pct=0.1)
    meeting, failing = search.bracket(found(asked, limit, begin))
    assert meeting == (min(limit, 256) or None)
    assert failing == (None if limit >= 256 else limit + 1)


def test_a_load_that_fails_below_one_that_met_it_rules() -> None:
    assert search.bracket({1: True, 2: True, 4: False, 8: True, 16: False}) == (2, 4)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("slo = {}", "slo: expected limits of some of ttft_ms, tpot_ms, e2e_ms, got none"),
        ("slo = { itl_ms = 3 }", "slo: expected limits of some of .* got itl_ms"),
        ("slo = { ttft_ms = 3 }\nlow = 9\nhigh = 8", "high: expected more than low \\(9\\), got 8"),
        ("slo = { ttft_ms = 3 }", "high: expected at most .* num_prompts \\(30\\).*got 256"),
    ],
)
def test_a_search_that_cannot_be_is_refused(tmp_path: Path, keys: str, said: str) -> None:
    (tmp_path / "001.jsonl").write_text('{"text": "a"}\n')
    text = f'[experiment]\ndatasets = "*.jsonl"\n[[backends]]\nname = "b"\n[search]\n{keys}\n'
    (tmp_path / "e.toml").write_text(text)
    with pytest.raises(ConfigError, match=f"\\[search\\], {said}"):
        config.load(tmp_path / "e.toml")


def request(ttft_ms: float = 100.0, tpot_ms: float | None = 10.0) -> RequestFinished:
    return RequestFinished(
        run="b/001",
        index=0,
        input_tokens=1,
        output_tokens=9,
        ttft_ms=ttft_ms,
        tpot_ms=tpot_ms,
        itl_ms=10.0,
        e2e_ms=900.0,
    )


@pytest.mark.parametrize(
    ("times", "met"),
    [
        ({}, True),
        ({"ttft_ms": 500.0}, True),
        ({"ttft_ms": 500.1}, False),
        ({"tpot_ms": 50.1}, False),
        ({"tpot_ms": None}, False),
    ],
)
def test_a_request_meets_every_limit_or_not(times: dict[str, Any], met: bool) -> None:
    assert saturation.meets(request(**times), SLO) is met


def test_an_error_meets_nothing_and_a_single_token_has_no_tpot() -> None:
    ended = RequestFinished(
        run="b/1",
        index=0,
        input_tokens=1,
        output_tokens=1,
        ttft_ms=1.0,
        tpot_ms=None,
        itl_ms=None,
        e2e_ms=1.0,
    )
    assert saturation.meets(ended, SLO)
    failed = RequestFinished(
        run="b/1",
        index=0,
        input_tokens=1,
        output_tokens=9,
        ttft_ms=1.0,
        tpot_ms=1.0,
        itl_ms=1.0,
        e2e_ms=1.0,
        error="refused",
    )
    assert not saturation.meets(failed, SLO)


class TestSaturation:
    def told(self, stream: Sequence[tuple[float, AnyEvent]], allowed: int) -> list[bool]:
        times = iter([at for at, event in stream if isinstance(event, Sampled)])
        watch = Saturation(SLO, allowed, clock=lambda: next(times))
        return [watch(event) for _, event in stream]

    def test_it_is_over_once_more_missed_than_may(self) -> None:
        late = (0.0, request(ttft_ms=900.0))
        stream = [late, (0.0, request()), late, late, late]
        assert self.told(stream, 2) == [False, False, False, True, False]

    def test_requests_that_wait_too_long_count_though_they_have_not_ended(self) -> None:
        def sample(at: float, sent: int, answered: int) -> tuple[float, AnyEvent]:
            return at, Sampled(
                backend="b",
                run="b/001",
                sent=sent,
                first_tokens=answered,
                output_tokens=0,
                finished=0,
            )

        started = (0.0, RunStarted(run="b/001", requests=99))
        steady = [sample(at, 10 * at + 1, 10 * at) for at in range(5)]
        assert not any(self.told([started, *steady], 2))
        growing = [sample(at, 10 * at, 5 * at) for at in range(5)]
        assert self.told([started, *growing], 2) == [False, False, False, False, True, False]


def test_misses_that_the_share_allows_are_whole_and_not_lost_by_rounding() -> None:
    assert [search.allowed_misses(share, 100) for share in (0.99, 0.9, 1.0)] == [1, 10, 0]
    assert search.allowed_misses(0.99, 99) == 0
