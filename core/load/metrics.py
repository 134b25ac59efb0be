"""Request records → TTFT, TPOT, ITL, E2E, throughput, goodput.

- TTFT: first token event with content - t_sent. Also from t_due, which includes the wait for the
  client: what a user felt (with a fixed concurrency a request is due when a slot is free).
- TPOT: (t_last - t_first) / (n - 1), one value per request of n > 1 tokens.
- ITL: every gap between token events; a gap whose event carried several tokens is divided by their
  number and counted in `shared_events`. Empty events and chat's role event are not tokens.
- E2E: t_last - t_sent, and from t_due. Throughput: over the time from the first due moment to the
  last token.
- Output length: from the server's usage, else from its tokenizer, else one token per event
  (`output_tokens_from` says which).
- p99: from 100 values on. With fewer it is null with a reason. The maximum is given beside it.
- Goodput: requests per second that met every limit of the `slo`; TTFT and E2E from t_due.
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

MIN_FOR_P99 = 100
SLO_LIMITS = ("ttft_ms", "tpot_ms", "e2e_ms")


class Metrics(Struct, frozen=True, kw_only=True):
    """Figures of a run's completed requests, under upstream's keys and with their meaning. Rates
    are per second. Result files of other tools lack some: those are None, or 0 if they are
    counts."""

    num_prompts: int = 0
    completed: int = 0
    duration: float | None = None
    total_input_tokens: int = 0
    total_output_tokens: int = 0
    request_throughput: float | None = None
    input_throughput: float | None = None
    output_throughput: float | None = None
    mean_ttft_ms: float | None = None
    median_ttft_ms: float | None = None
    p99_ttft_ms: float | None = None
    p99_ttft_ms_reason: str | None = None
    max_ttft_ms: float | None = None
    mean_tpot_ms: float | None = None
    median_tpot_ms: float | None = None
    p99_tpot_ms: float | None = None
    p99_tpot_ms_reason: str | None = None
    max_tpot_ms: float | None = None
    mean_itl_ms: float | None = None
    median_itl_ms: float | None = None
    p99_itl_ms: float | None = None
    p99_itl_ms_reason: str | None = None
    max_itl_ms: float | None = None
    mean_e2e_ms: float | None = None
    median_e2e_ms: float | None = None
    p99_e2e_ms: float | None = None
    p99_e2e_ms_reason: str | None = None
    max_e2e_ms: float | None = None
    mean_ttft_from_due_ms: float | None = None
    median_ttft_from_due_ms: float | None = None
    p99_ttft_from_due_ms: float | None = None
    p99_ttft_from_due_ms_reason: str | None = None
    max_ttft_from_due_ms: float | None = None
    mean_e2e_from_due_ms: float | None = None
    median_e2e_from_due_ms: float | None = None
    p99_e2e_from_due_ms: float | None = None
    p99_e2e_from_due_ms_reason: str | None = None
    max_e2e_from_due_ms: float | None = None
    shared_events: int = 0  # events that carried several tokens
    # Share of reads that held several events of a stream: the gaps between those are lost.
    shared_reads_share: float | None = None
    request_goodput: float | None = None  # None without an slo
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
    inputs, outputs = sum(r.prompt_tokens for r in done), sum(r.output_tokens for r in done)
    per_read = events_per_read(done)

    def rate(amount: int) -> float:
        return amount / duration if duration > 0 else 0.0

    return Metrics(
        num_prompts=len(records),
        completed=len(done),
        duration=duration,
        total_input_tokens=inputs,
        total_output_tokens=outputs,
        request_throughput=rate(len(done)),
        input_throughput=rate(inputs),
        output_throughput=rate(outputs),
        **_centre("ttft", [r.ttft_s for r in done]),
        **_centre("tpot", [t for r in done if (t := r.tpot_s) is not None]),
        **_centre("itl", itls_s(done)),
        **_centre("e2e", [r.e2e_s for r in done]),
        **_centre("ttft_from_due", [r.ttft_from_due_s for r in done]),
        **_centre("e2e_from_due", [r.e2e_from_due_s for r in done]),
        shared_events=sum(int(np.count_nonzero(np.asarray(r.event_tokens) > 1)) for r in done),
        shared_reads_share=float((per_read > 1).mean()) if per_read.size else None,
        request_goodput=rate(sum(_is_good(r, slo) for r in done)) if slo else None,
        output_tokens_from=dict(Counter(r.output_tokens_from for r in done)),
        errors_by_kind=dict(
            sorted(Counter(r.error.split(":")[0] for r in records if r.error).items())
        ),
    )


def _is_good(record: RequestRecord, slo: Mapping[str, float]) -> bool:
    measured = {
        "ttft_ms": record.ttft_from_due_s,
        "tpot_ms": record.tpot_s or 0.0,
        "e2e_ms": record.e2e_from_due_s,
    }
    return all(measured[name] * 1e3 <= limit for name, limit in slo.items())


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
