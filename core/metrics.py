"""Request records → TTFT, TPOT, ITL, E2E, throughput.

- TTFT: first token event with content - t_sent. From t_due too (`ttfts_from_due`): what a user felt.
- TPOT: (t_last - t_first) / (n - 1), one value a request of n > 1 tokens.
- ITL: every gap between token events; a gap whose event carried several tokens is divided by them and counted in
  `shared_events`.
- E2E: t_last - t_sent. Throughput: over the time from the first due moment to the last token.
Times are perf_counter nanoseconds of one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """What one request did. `stamps_ns[i]`: when event i was read; it carried `event_tokens[i]` tokens."""

    index: int
    prompt_id: str
    t_due_ns: int
    t_start_ns: int
    t_sent_ns: int
    t_done_ns: int
    stamps_ns: tuple[int, ...] = ()
    event_tokens: tuple[int, ...] = ()
    prompt_tokens: int = 0
    output_tokens: int = 0
    text: str = ""
    error: str = ""
    reads: int = 0
    shared_reads: int = 0  # reads that held more than one event: their gaps are lost

    @property
    def ok(self) -> bool:
        return not self.error

    @property
    def ttft_s(self) -> float:
        return (self.stamps_ns[0] - self.t_sent_ns) / 1e9

    @property
    def e2e_s(self) -> float:
        return (self.stamps_ns[-1] - self.t_sent_ns) / 1e9

    @property
    def tpot_s(self) -> float | None:
        n = self.output_tokens
        return (self.stamps_ns[-1] - self.stamps_ns[0]) / 1e9 / (n - 1) if n > 1 else None

    @property
    def itls_s(self) -> list[float]:
        """Gaps in seconds, one per token after the first event."""
        gaps = np.diff(np.array(self.stamps_ns, dtype=np.int64)) / 1e9
        tokens = self.event_tokens[1:]
        return [g / n for g, n in zip(gaps.tolist(), tokens, strict=True) for _ in range(n)]


@dataclass(frozen=True, slots=True)
class Metrics:
    """Figures over the completed requests of a run; upstream's keys and meanings. Rates are per second."""

    num_prompts: int
    completed: int
    duration: float
    total_input_tokens: int
    total_output_tokens: int
    request_throughput: float
    input_throughput: float
    output_throughput: float
    mean_ttft_ms: float | None
    median_ttft_ms: float | None
    p99_ttft_ms: float | None
    mean_tpot_ms: float | None
    median_tpot_ms: float | None
    p99_tpot_ms: float | None
    mean_itl_ms: float | None
    median_itl_ms: float | None
    p99_itl_ms: float | None
    mean_e2e_ms: float | None
    median_e2e_ms: float | None
    p99_e2e_ms: float | None
    mean_ttft_from_due_ms: float | None
    shared_events: int  # events that carried several tokens
    shared_reads_share: float | None  # reads that held several events: client lag
    errors_by_kind: dict[str, int] = field(default_factory=dict)


def summarise(records: Sequence[RequestRecord]) -> Metrics:
    """Figures of one run; a request that failed counts in `num_prompts` only. None where nothing was measured."""
    done = [r for r in records if r.ok]
    start = min((r.t_due_ns for r in records), default=0)
    end = max((r.stamps_ns[-1] for r in done), default=start)
    duration = (end - start) / 1e9
    inputs, outputs = sum(r.prompt_tokens for r in done), sum(r.output_tokens for r in done)
    ttft, tpot = [r.ttft_s for r in done], [t for r in done if (t := r.tpot_s) is not None]
    itl, e2e = [g for r in done for g in r.itls_s], [r.e2e_s for r in done]
    reads = sum(r.reads for r in done)
    kinds = [r.error.split(":")[0] for r in records if r.error]

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
        **_centre("ttft", ttft),
        **_centre("tpot", tpot),
        **_centre("itl", itl),
        **_centre("e2e", e2e),
        mean_ttft_from_due_ms=_mean_ms([(r.stamps_ns[0] - r.t_due_ns) / 1e9 for r in done]),
        shared_events=sum(n > 1 for r in done for n in r.event_tokens),
        shared_reads_share=sum(r.shared_reads for r in done) / reads if reads else None,
        errors_by_kind={kind: kinds.count(kind) for kind in sorted(set(kinds))},
    )


def as_result(records: Sequence[RequestRecord], figures: Metrics) -> dict[str, Any]:
    """The measured part of a result file: upstream's keys with their meaning, and ours; lists in data set order."""
    return {
        **asdict(figures),
        "input_lens": [r.prompt_tokens for r in records],
        "output_lens": [r.output_tokens for r in records],
        "ttfts": [r.ttft_s if r.ok else None for r in records],
        "ttfts_from_due": [(r.stamps_ns[0] - r.t_due_ns) / 1e9 if r.ok else None for r in records],
        "itls": [r.itls_s if r.ok else [] for r in records],
        "generated_texts": [r.text for r in records],
        "errors": [r.error for r in records],
        "stamps": "user space, at read",
    }


def _centre(name: str, seconds: Sequence[float]) -> dict[str, float | None]:
    """Mean, median and p99 (linear interpolation, as NumPy and upstream) in milliseconds."""
    if not seconds:
        return {f"{kind}_{name}_ms": None for kind in ("mean", "median", "p99")}
    ms = np.array(seconds) * 1e3
    return {
        f"mean_{name}_ms": float(ms.mean()),
        f"median_{name}_ms": float(np.median(ms)),
        f"p99_{name}_ms": float(np.percentile(ms, 99)),
    }


def _mean_ms(seconds: Sequence[float]) -> float | None:
    return float(np.mean(seconds) * 1e3) if seconds else None
