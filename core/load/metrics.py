"""Request records → TTFT, TPOT, ITL, E2E, throughput, goodput.

- TTFT: first token event - t_sent. Also from t_due, which includes the wait for the client: what a
  user felt (with a fixed concurrency a request is due when a slot is free).
- Token event: one whose count rises (the server's `continuous_usage_stats`), whether or not it has
  text; without counts, one with content (text, reasoning, a tool call, a refusal).
- TPOT: (t_last - t_first) / (n - tokens of the first event), one value per request. ITL: every gap
  between token events; a gap whose event carried several tokens is divided by their number and
  counted in `shared_events`.
- One piece: an answer of several tokens that came in one event, or whose events came in one read,
  has no TPOT and no ITL (`one_piece_answers` counts them).
- E2E: t_last - t_sent, and from t_due. Throughput: over the time from the first due moment to the
  last token.
- Output length: from the server's usage, else from its tokenizer, else one token per event
  (`output_tokens_from` says which). Tokens of events with text are `visible_tokens`.
- Unseen tokens: where a final usage counts more tokens than the events showed, the times of the
  others are unknown: TPOT, ITL and E2E of the request are null, and so are rates over a time that
  such a request may have ended. Each null has its reason beside it.
- End of an answer: [DONE], or a finish_reason and usage, whatever the connection does then.
- p99: from 100 values on. With fewer it is null with a reason. The maximum is given beside it. Its
  95 % interval is of order statistics over requests taken as independent; it has an upper end from
  299 on. That of ITL has none: gaps of different requests are times of the same engine steps.
- Goodput: requests per second that met every limit of the `slo`; TTFT and E2E from t_due. A time
  that is null meets no limit, but a single token has no TPOT to limit.
Times are perf_counter nanoseconds of one machine; see core.load.record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from core.load.record import RequestRecord as RequestRecord
from core.load.record import events_per_read, itls_s
from core.stats import order

MIN_FOR_P99 = 100
Ends = tuple[float | None, float | None]
SLO_LIMITS = ("ttft_ms", "tpot_ms", "e2e_ms")


class Metrics(Struct, frozen=True, kw_only=True):
    """Figures of a run's completed requests, under upstream's keys and with their meaning. Rates
    are per second. Result files of other tools lack some: those are None, or 0 if they are
    counts."""

    num_prompts: int = 0
    completed: int = 0
    duration: float | None = None
    total_input_tokens: int | None = 0
    total_input_tokens_reason: str | None = None
    total_output_tokens: int = 0
    request_throughput: float | None = None
    request_throughput_reason: str | None = None
    input_throughput: float | None = None
    input_throughput_reason: str | None = None
    output_throughput: float | None = None
    output_throughput_reason: str | None = None
    mean_ttft_ms: float | None = None
    median_ttft_ms: float | None = None
    p99_ttft_ms: float | None = None
    p99_ttft_ms_reason: str | None = None
    p99_ttft_ms_interval: Ends | None = None
    max_ttft_ms: float | None = None
    mean_tpot_ms: float | None = None
    median_tpot_ms: float | None = None
    p99_tpot_ms: float | None = None
    p99_tpot_ms_reason: str | None = None
    p99_tpot_ms_interval: Ends | None = None
    max_tpot_ms: float | None = None
    tpot_ms_reason: str | None = None  # why some or all requests are not in it
    mean_itl_ms: float | None = None
    median_itl_ms: float | None = None
    p99_itl_ms: float | None = None
    p99_itl_ms_reason: str | None = None
    max_itl_ms: float | None = None
    itl_ms_reason: str | None = None
    mean_e2e_ms: float | None = None
    median_e2e_ms: float | None = None
    p99_e2e_ms: float | None = None
    p99_e2e_ms_reason: str | None = None
    p99_e2e_ms_interval: Ends | None = None
    max_e2e_ms: float | None = None
    e2e_ms_reason: str | None = None
    mean_ttft_from_due_ms: float | None = None
    median_ttft_from_due_ms: float | None = None
    p99_ttft_from_due_ms: float | None = None
    p99_ttft_from_due_ms_reason: str | None = None
    p99_ttft_from_due_ms_interval: Ends | None = None
    max_ttft_from_due_ms: float | None = None
    mean_e2e_from_due_ms: float | None = None
    median_e2e_from_due_ms: float | None = None
    p99_e2e_from_due_ms: float | None = None
    p99_e2e_from_due_ms_reason: str | None = None
    p99_e2e_from_due_ms_interval: Ends | None = None
    max_e2e_from_due_ms: float | None = None
    shared_events: int = 0  # events that carried several tokens
    # Share of reads that held several events of a stream: the gaps between those are lost.
    shared_reads_share: float | None = None
    one_piece_answers: int = 0  # of several tokens, all at one time
    request_goodput: float | None = None  # None without an slo
    request_goodput_reason: str | None = None
    output_tokens_from: dict[str, int] = {}
    errors_by_kind: dict[str, int] = {}


def summarise(records: Sequence[RequestRecord], slo: Mapping[str, float] | None = None) -> Metrics:
    """Figures of one run; those without a measurement are None.

    A failed request counts only in `num_prompts`. `slo`: limits in ms, by the names of SLO_LIMITS.
    """
    done = [r for r in records if r.ok]
    start = min((r.t_due_ns for r in records), default=0)
    end = max((r.stamps_ns[-1] for r in done), default=start)
    duration = (end - start) / 1e9
    outputs = sum(r.output_tokens for r in done)
    inputs, uncounted = _input_tokens(done)
    per_read = events_per_read(done)
    pieces = sum(r.is_one_piece for r in done)
    unseen = [r for r in done if not r.is_seen]
    unsure = _unsure_end([r for r in done if not r.is_end_seen], end)
    untimed = _untimed(len(done), pieces, len(unseen))

    def rate(amount: int | None) -> float | None:
        if amount is None or unsure:
            return None
        return amount / duration if duration > 0 else 0.0

    return Metrics(
        num_prompts=len(records),
        completed=len(done),
        duration=duration,
        total_input_tokens=inputs,
        total_input_tokens_reason=uncounted,
        total_output_tokens=outputs,
        request_throughput=rate(len(done)),
        request_throughput_reason=unsure,
        input_throughput=rate(inputs),
        input_throughput_reason=uncounted or unsure,
        output_throughput=rate(outputs),
        output_throughput_reason=unsure,
        **_over_requests("ttft", [r.ttft_s for r in done]),
        **_over_requests("tpot", [t for r in done if (t := r.tpot_s) is not None]),
        tpot_ms_reason=untimed,
        **_centre("itl", itls_s(done)),
        itl_ms_reason=untimed,
        **_over_requests("e2e", [t for r in done if (t := r.e2e_s) is not None]),
        e2e_ms_reason=_unseen_ends(len(done), sum(not r.is_end_seen for r in done)),
        **_over_requests("ttft_from_due", [r.ttft_from_due_s for r in done]),
        **_over_requests("e2e_from_due", [t for r in done if (t := r.e2e_from_due_s) is not None]),
        shared_events=sum(int(np.count_nonzero(np.asarray(r.event_tokens) > 1)) for r in done),
        shared_reads_share=float((per_read > 1).mean()) if per_read.size else None,
        one_piece_answers=pieces,
        request_goodput=rate(sum(_is_good(r, slo) for r in done)) if slo else None,
        request_goodput_reason=unsure if slo else None,
        output_tokens_from=dict(Counter(r.output_tokens_from for r in done)),
        errors_by_kind=dict(
            sorted(Counter(r.error.split(":")[0] for r in records if r.error).items())
        ),
    )


def _input_tokens(done: Sequence[RequestRecord]) -> tuple[int | None, str | None]:
    """The prompts' tokens, or why they are unknown."""
    counts = [r.prompt_tokens for r in done if r.prompt_tokens is not None]
    if len(counts) == len(done):
        return sum(counts), None
    missing = len(done) - len(counts)
    return None, f"{missing} of {len(done)} answers have no usage that counts the prompt's tokens"


def _unsure_end(unseen: Sequence[RequestRecord], end: int) -> str | None:
    """Why the time of the last token of all is unknown; None if it is known: an answer whose last
    token was not seen may have ended after `end` (ns)."""
    late = sum(r.t_done_ns > end for r in unseen)
    if not late:
        return None
    return f"the time of the last token is unknown: {_more_than_seen(late)}"


def _untimed(done: int, pieces: int, unseen: int) -> str | None:
    """Why requests have no TPOT and ITL, though they have several tokens."""
    reasons = []
    if pieces:
        reasons.append(f"{pieces} of {done} answers came in one piece")
    if unseen:
        reasons.append(f"of {done} answers, {_more_than_seen(unseen)}")
    return "; ".join(reasons) or None


def _unseen_ends(done: int, unseen: int) -> str | None:
    return f"of {done} answers, {_more_than_seen(unseen)}" if unseen else None


def _more_than_seen(answers: int) -> str:
    have = "has" if answers == 1 else "have"
    return f"{answers} {have} more tokens than events showed"


def _is_good(record: RequestRecord, slo: Mapping[str, float]) -> bool:
    tpot = 0.0 if record.output_tokens == 1 else record.tpot_s
    measured = {
        "ttft_ms": record.ttft_from_due_s,
        "tpot_ms": tpot,
        "e2e_ms": record.e2e_from_due_s,
    }
    times = [(measured[name], limit) for name, limit in slo.items()]
    return all(time is not None and time * 1e3 <= limit for time, limit in times)


def _centre(name: str, seconds: Sequence[float] | NDArray[np.float64]) -> dict[str, Any]:
    found = summary(seconds)
    n = found.n if found else 0
    return {
        f"mean_{name}_ms": found.mean if found else None,
        f"median_{name}_ms": found.p50 if found else None,
        f"p99_{name}_ms": found.p99 if found else None,
        f"p99_{name}_ms_reason": f"n = {n}, and a p99 needs {MIN_FOR_P99}"
        if n < MIN_FOR_P99
        else None,
        f"max_{name}_ms": found.max if found else None,
    }


def _over_requests(name: str, seconds: Sequence[float]) -> dict[str, Any]:
    """Figures of which each request has one, so with the interval of the p99."""
    found = _centre(name, seconds)
    known = found[f"p99_{name}_ms"] is not None
    ends = order.interval(np.asarray(seconds) * 1e3, 0.99) if known else None
    return {**found, f"p99_{name}_ms_interval": ends}


@dataclass(frozen=True, slots=True)
class Summary:
    """Milliseconds over `n` values; `p99` is None for fewer than MIN_FOR_P99."""

    n: int
    mean: float
    p50: float
    p90: float
    p99: float | None
    max: float


def summary(seconds: Sequence[float] | NDArray[np.float64]) -> Summary | None:
    """Percentiles interpolate linearly, as NumPy's and upstream's do. None if empty."""
    ms = np.asarray(seconds) * 1e3
    if not ms.size:
        return None
    p90, p99 = np.percentile(ms, [90, 99]).tolist()
    return Summary(
        n=ms.size,
        mean=float(ms.mean()),
        p50=float(np.median(ms)),
        p90=p90,
        p99=p99 if ms.size >= MIN_FOR_P99 else None,
        max=float(ms.max()),
    )
