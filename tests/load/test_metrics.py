from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, groupby
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.load.client import Load
from core.load.metrics import Metrics, summarise
from core.load.record import (
    KERNEL_STAMPS,
    USER_STAMPS,
    Lag,
    Records,
    RequestRecord,
    WorkerHealth,
    events_per_read,
    itls_s,
)
from core.load.trust import Trust, trust
from core.rundir import result
from core.rundir.result import Result

MS = 1_000_000


def record(
    index: int = 0, *, sent: float = 10, due: float = 0, at: tuple[float, ...] = (), **fields: Any
) -> RequestRecord:
    """A request by its times in ms."""
    stamps = tuple(int(t * MS) for t in at)
    defaults: dict[str, Any] = {
        "event_tokens": (1,) * len(at),
        "output_tokens": len(at),
        "prompt_tokens": 7,
        "t_start_ns": int(sent * MS),
        "t_done_ns": int((at[-1] if at else sent) * MS),
    }
    return RequestRecord(
        index=index,
        prompt_id=f"p{index}",
        t_due_ns=int(due * MS),
        t_sent_ns=int(sent * MS),
        stamps_ns=stamps,
        **{**defaults, **fields},
    )


# --- the definitions, worked out by hand ---


def test_one_request() -> None:
    r = record(sent=10, due=4, at=(60, 70, 90, 95))
    assert r.ttft_s == pytest.approx(0.050)
    assert r.ttft_from_due_s == pytest.approx(0.056)
    assert r.tpot_s == pytest.approx((0.095 - 0.060) / 3)
    assert r.itls_s == pytest.approx([0.010, 0.020, 0.005])
    assert r.e2e_s == pytest.approx(0.085)
    assert r.e2e_from_due_s == pytest.approx(0.091)


REQUESTS = st.lists(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), max_size=6), max_size=5
)


@given(REQUESTS)
def test_gaps_and_reads_of_many_requests_are_those_of_each_in_turn(
    requests: list[list[tuple[int, int]]],
) -> None:
    records = [
        record(i, at=tuple(accumulate((step for step, _ in events), initial=20))[1:])
        for i, events in enumerate(requests)
    ]
    records = [
        replace(
            r,
            event_tokens=tuple(n for _, n in events),
            output_tokens=sum(n for _, n in events),
        )
        for r, events in zip(records, requests, strict=True)
    ]
    gaps, reads = [], []
    for r in records:
        is_one_piece = len(set(r.stamps_ns)) < 2
        for earlier, later, tokens in zip(
            r.stamps_ns, r.stamps_ns[1:], r.event_tokens[1:], strict=False
        ):
            gaps += [] if is_one_piece else [(later - earlier) / 1e9 / tokens] * tokens
        reads += [len(list(group)) for _, group in groupby(r.stamps_ns)]
    assert (
        itls_s(records).tolist()
        == pytest.approx(gaps)
        == [gap for r in records for gap in r.itls_s]
    )
    assert (
        events_per_read(records).tolist()
        == reads
        == [n for r in records for n in r.events_per_read]
    )


def test_a_gap_is_divided_by_the_tokens_its_event_carried() -> None:
    r = record(at=(60, 90, 100), event_tokens=(2, 3, 1), output_tokens=6)
    assert r.itls_s == pytest.approx([0.010, 0.010, 0.010, 0.010])
    assert r.tpot_s == pytest.approx(0.040 / 4)  # the first event's two tokens began the time
    assert summarise([r]).shared_events == 2


ONE_PIECE = [
    {"at": (60,), "event_tokens": (50,), "output_tokens": 50},  # one event
    {"at": (60, 60, 60)},  # one read
]


@pytest.mark.parametrize("fields", ONE_PIECE)
def test_an_answer_in_one_piece_has_no_tpot_and_no_itl(fields: dict[str, Any]) -> None:
    piece, other = record(**fields), record(1, at=(60, 70, 80))
    assert (piece.tpot_s, piece.itls_s) == (None, [])
    figures = summarise([piece, other], {"tpot_ms": 1000, "ttft_ms": 1000})
    assert figures.mean_tpot_ms == figures.mean_itl_ms == pytest.approx(10.0)
    assert figures.tpot_ms_reason == figures.itl_ms_reason == "1 of 2 answers came in one piece"
    assert figures.one_piece_answers == 1
    assert figures.request_goodput == pytest.approx(1 / 0.080)  # of the other, over its 80 ms
    assert figures.max_e2e_ms == pytest.approx(70.0)
    alone = summarise([piece])
    assert (alone.mean_tpot_ms, alone.mean_itl_ms, alone.max_itl_ms) == (None, None, None)
    assert alone.mean_e2e_ms == pytest.approx(50.0)


def test_one_token_has_no_tpot_that_a_limit_could_forbid() -> None:
    figures = summarise([record(at=(60,))], {"tpot_ms": 1})
    assert figures.request_goodput == pytest.approx(1 / 0.060)
    assert (figures.one_piece_answers, figures.tpot_ms_reason) == (0, None)


def test_times_of_unseen_tokens_are_unknown_and_so_is_what_divides_by_them() -> None:
    unseen = record(at=(60, 70), output_tokens=20, t_done_ns=500 * MS)
    assert (unseen.tpot_s, unseen.itls_s, unseen.e2e_s, unseen.e2e_from_due_s) == (
        None,
        [],
        None,
        None,
    )
    figures = summarise([unseen], {"e2e_ms": 1000})
    assert figures.mean_ttft_ms == pytest.approx(50.0)
    assert figures.total_output_tokens == 20
    reason = "the time of the last token is unknown: 1 has more tokens than events showed"
    for name in ("output_throughput", "request_throughput", "input_throughput", "request_goodput"):
        assert (getattr(figures, name), getattr(figures, f"{name}_reason")) == (None, reason)
    assert (
        figures.tpot_ms_reason
        == figures.e2e_ms_reason
        == "of 1 answers, 1 has more tokens than events showed"
    )


def test_a_rate_is_known_if_what_was_not_seen_came_before_the_end() -> None:
    unseen = record(at=(60, 70), output_tokens=20, t_done_ns=90 * MS)
    figures = summarise([unseen, record(1, at=(60, 100))])
    assert figures.output_throughput == pytest.approx(22 / 0.100)
    assert figures.mean_tpot_ms == pytest.approx(40.0)


def test_a_tokenizer_counts_only_what_came_but_not_in_which_event() -> None:
    counted = record(at=(60, 70), output_tokens=4, output_tokens_from="tokenizer")
    assert (counted.tpot_s, counted.itls_s) == (None, [])
    assert counted.e2e_s == pytest.approx(0.060)
    assert summarise([counted]).output_throughput == pytest.approx(4 / 0.070)


def test_prompts_that_nobody_counted_have_no_throughput() -> None:
    figures = summarise([record(at=(60, 70)), record(1, at=(60, 70), prompt_tokens=None)])
    reason = "1 of 2 answers have no usage that counts the prompt's tokens"
    assert (figures.total_input_tokens, figures.total_input_tokens_reason) == (None, reason)
    assert (figures.input_throughput, figures.input_throughput_reason) == (None, reason)
    assert figures.output_throughput == pytest.approx(4 / 0.070)


def test_one_token_has_no_tpot() -> None:
    r = record(at=(60,))
    assert (r.tpot_s, r.itls_s) == (None, [])
    figures = summarise([r])
    assert (figures.mean_tpot_ms, figures.mean_itl_ms) == (None, None)
    assert figures.mean_ttft_ms == pytest.approx(50.0)


def test_events_of_one_read_share_a_stamp_and_the_share_of_such_reads_is_told() -> None:
    r = record(at=(60, 70, 70, 70, 80))
    assert r.events_per_read == [1, 3, 1]
    assert r.itls_s == pytest.approx([0.010, 0.0, 0.0, 0.010])  # not smoothed away
    assert summarise([r]).shared_reads_share == pytest.approx(1 / 3)


def test_rates_run_from_the_first_due_moment_to_the_last_token() -> None:
    figures = summarise(
        [record(0, due=0, at=(60, 70)), record(1, due=100, sent=110, at=(300, 500))]
    )
    assert figures.duration == pytest.approx(0.5)
    assert figures.request_throughput == pytest.approx(4.0)
    assert figures.output_throughput == pytest.approx(8.0)
    assert figures.input_throughput == pytest.approx(28.0)


def test_a_failed_request_counts_as_sent_and_in_no_figure() -> None:
    bad = record(1, at=(20, 900), error="stream cut: the server closed it before [DONE]")
    figures = summarise([record(0, at=(60, 70)), bad])
    assert (figures.num_prompts, figures.completed, figures.total_output_tokens) == (2, 1, 2)
    assert figures.mean_ttft_ms == pytest.approx(50.0)
    assert figures.errors_by_kind == {"stream cut": 1}
    taken = written([record(0, at=(60, 70)), bad])
    assert (taken.ttfts[1], taken.itls[1], taken.errors[1]) == (None, [], bad.error)


def written(records: Sequence[RequestRecord]) -> Result:
    """The result file of these requests."""
    load = Load(base_url="http://x", model="m", label="001", prompts=())
    figures = summarise(records)
    return result.of_load(load, records, figures, None, backend="b", dataset="001", path="d")


def test_p99_needs_a_hundred_values() -> None:
    few = [record(i, at=(10 + 10 + i, 200)) for i in range(99)]
    figures = summarise(few)
    assert (figures.p99_ttft_ms, figures.p99_ttft_ms_reason) == (
        None,
        "n = 99, and a p99 needs 100",
    )
    assert figures.max_ttft_ms == pytest.approx(108.0)
    figures = summarise([*few, record(99, at=(10 + 10 + 99, 200))])
    assert figures.p99_ttft_ms == pytest.approx(10 + 0.99 * 99)
    assert figures.p99_ttft_ms_reason is None


def test_a_p99_has_an_interval_over_requests() -> None:
    """By the binomial (tests/stats/test_order.py): from place 96 of 100, 288 to 298 of 299."""
    records = [record(i, at=(20 + i, 400 + i, 410 + i)) for i in range(299)]
    few = summarise(records[:100])
    assert few.p99_ttft_ms_interval == pytest.approx((10 + 96, None))
    figures = summarise(records)
    assert figures.p99_ttft_ms_interval == pytest.approx((10 + 288, 10 + 298))
    assert figures.p99_e2e_ms_interval == pytest.approx((400 + 288, 400 + 298))
    assert summarise(records[:99]).p99_ttft_ms_interval is None
    assert not hasattr(figures, "p99_itl_ms_interval")  # gaps share engine steps
    taken = result.decode(json.dumps({"p99_ttft_ms_interval": [1.5, None]}).encode())
    assert taken.p99_ttft_ms_interval == (1.5, None)


def test_goodput_counts_what_met_every_limit_as_the_user_felt_it() -> None:
    quick = record(0, due=0, sent=10, at=(60, 70, 80))
    queued = record(1, due=0, sent=900, at=(950, 960, 1000))  # TTFT 50 ms from sent, 950 from due
    slow = record(2, due=0, sent=10, at=(60, 160, 260))
    records = [quick, queued, slow]
    assert summarise(records).request_goodput is None
    assert summarise(records, {"ttft_ms": 100}).request_goodput == pytest.approx(2.0)
    assert summarise(records, {"ttft_ms": 100, "tpot_ms": 50}).request_goodput == pytest.approx(1.0)
    assert summarise(records, {"e2e_ms": 1000}).request_goodput == pytest.approx(3.0)


def test_nothing_was_measured() -> None:
    for records in ([], [record(error="HTTP 500: no")]):
        figures = summarise(records)
        assert (
            figures.completed,
            figures.duration,
            figures.mean_ttft_ms,
            figures.output_throughput,
        ) == (0, 0, None, 0)
        assert written(records).client is None


@given(st.lists(st.lists(st.floats(0, 1e4), min_size=1, max_size=12), min_size=1, max_size=8))
def test_figures_are_those_of_numpy_over_the_same_gaps(gaps_ms: list[list[float]]) -> None:
    records = [record(i, at=tuple(50 + np.cumsum(gaps))) for i, gaps in enumerate(gaps_ms)]
    stamps = [np.array(r.stamps_ns) for r in records]
    gaps = np.concatenate([np.diff(s) for s in stamps if s[0] < s[-1]] or [np.zeros(0)]) / MS
    figures = summarise(records)
    assert figures.mean_ttft_ms == pytest.approx(np.mean([s[0] / MS - 10 for s in stamps]))
    assert figures.max_e2e_ms == pytest.approx(max(s[-1] / MS - 10 for s in stamps))
    assert figures.mean_itl_ms == (pytest.approx(gaps.mean()) if gaps.size else None)
    assert figures.median_itl_ms == (pytest.approx(np.median(gaps)) if gaps.size else None)


# --- how far to trust it ---

HEALTHY = WorkerHealth(
    reads=1000,
    stamped_reads=1000,
    loop_lags_ns=tuple(range(0, 1_000_000, 10_000)),
    start_lags_ns=(100_000,) * 30,
    cpu_s=0.2,
    wall_s=1.0,
    connections=30,
    retries=0,
    clock_steps=0,
)


def verdict(health: WorkerHealth, at: tuple[float, ...] = (60, 70, 80)) -> Trust:
    return trust([health], summarise([record(at=at)]))


def test_a_client_with_time_to_spare_is_trusted() -> None:
    found = verdict(HEALTHY)
    assert (found.stamps, found.stamped_reads_share, found.limited_by_client, found.warnings) == (
        KERNEL_STAMPS,
        1.0,
        False,
        (),
    )
    assert found.loop_lag == Lag(0.5, 0.99, 0.99)
    assert found.late_starts == 0


LATE = (0,) * 50 + (12_000_000,) * 50


@pytest.mark.parametrize(
    ("change", "at", "words"),
    [
        ({"cpu_s": 0.95}, (60, 70, 80), "used 95% of a core"),
        ({"stamped_reads": 0, "loop_lags_ns": LATE}, (60, 70, 80), "are taken in user space"),
        ({"loop_lags_ns": LATE}, (60, 70, 70), "while the event loop was 12.0 ms late at p99"),
        ({"start_lags_ns": (0, 40_000_000)}, (60, 70, 80), "requests started up to 40.0 ms late"),
    ],
)
def test_each_way_in_which_a_client_limits_a_result(
    change: dict[str, Any], at: tuple[float, ...], words: str
) -> None:
    found = verdict(replace(HEALTHY, **change), at)
    assert found.limited_by_client
    assert len(found.warnings) == 1
    assert found.warnings[0].startswith("this result was limited by the client: ")
    assert words in found.warnings[0]
    assert "(rule: over " in found.warnings[0]


@pytest.mark.parametrize(
    ("change", "at"),
    [
        ({"loop_lags_ns": LATE}, (60, 70, 80)),  # kernel stamps do not move with the loop
        ({}, (60,)),  # one token
    ],
)
def test_what_is_not_the_client_s_fault(change: dict[str, Any], at: tuple[float, ...]) -> None:
    assert verdict(replace(HEALTHY, **change), at).warnings == ()


@pytest.mark.parametrize("change", [{}, {"loop_lags_ns": LATE}])
@pytest.mark.parametrize(
    ("at", "words"),
    [
        ((60, 60, 60), "1 of 1 answers came in one piece, and so have no TPOT and no ITL"),
        ((60, 360, 360, 660, 660), "66.7% of reads held several events of a stream"),
    ],
)
def test_a_stream_that_is_buffered_is_said_however_busy_the_machine(
    change: dict[str, Any], at: tuple[float, ...], words: str
) -> None:
    found = verdict(replace(HEALTHY, **change), at)
    assert (len(found.warnings), found.limited_by_client) == (1, False)
    assert words in found.warnings[0]
    assert "something between the server and the client buffers the stream" in found.warnings[0]


def test_reads_without_a_kernel_stamp_are_named() -> None:
    assert verdict(replace(HEALTHY, stamped_reads=0)).stamps == USER_STAMPS


def test_a_jump_of_the_wall_clock_is_a_doubt_and_no_limit() -> None:
    found = verdict(replace(HEALTHY, clock_steps=2))
    assert "jumped 2 times" in found.warnings[0]
    assert not found.limited_by_client


def test_the_verdict_is_in_the_result() -> None:
    records = Records([record(at=(60, 70))], [HEALTHY])
    client = written(records).client
    assert client
    assert client.stamps == KERNEL_STAMPS
    assert client.loop_lag == Lag(p50_ms=0.5, p99_ms=0.99, max_ms=0.99)


def test_percentiles_of_lags_are_nearest_rank() -> None:
    assert Lag.of([]) == Lag(None, None, None)
    assert Lag.of([3 * MS]) == Lag(3.0, 3.0, 3.0)
    assert Lag.of([i * MS for i in range(1, 101)]) == Lag(51.0, 100.0, 100.0)


def test_upstream_s_keys_are_kept() -> None:
    keys = set(Metrics.__struct_fields__)
    for metric in ("ttft", "tpot", "itl"):
        assert {f"{kind}_{metric}_ms" for kind in ("mean", "median", "p99")} <= keys
    lists = {"input_lens", "output_lens", "ttfts", "itls", "generated_texts", "errors"}
    assert lists <= set(msgspec.to_builtins(written([record(at=(60, 70))])))
    assert isinstance(summarise([]), Metrics)
