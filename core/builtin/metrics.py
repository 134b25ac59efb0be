"""The engine's counters, and their text in Prometheus' format with vLLM's names."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

TTFT_BUCKETS_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40,
    80,
)  # fmt: skip
ITL_BUCKETS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5,
    5, 10,
)  # fmt: skip
E2E_BUCKETS_S = (
    0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680,
)  # fmt: skip
FINISH_REASONS = ("stop", "length", "abort")


class Histogram:
    """Counts of observations up to each bound, and the sum of all observations."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


@dataclass(slots=True)
class Metrics:
    """What the engine counts. One thread writes; a reader may see a step counted in part."""

    running: int = 0
    waiting: int = 0
    cache_usage: float = 0.0  # share of the KV cache that holds tokens
    prompt_tokens: int = 0
    generation_tokens: int = 0
    time_to_first_token_s: Histogram = field(default_factory=lambda: Histogram(TTFT_BUCKETS_S))
    inter_token_latency_s: Histogram = field(default_factory=lambda: Histogram(ITL_BUCKETS_S))
    e2e_request_latency_s: Histogram = field(default_factory=lambda: Histogram(E2E_BUCKETS_S))
    finished: Counter[str] = field(default_factory=Counter)  # requests by finish reason

    def render(self, model: str) -> str:
        """The counters in Prometheus' text format."""
        labels = f'engine="0",model_name="{_escaped(model)}"'
        gauges = (
            ("num_requests_running", self.running),
            ("num_requests_waiting", self.waiting),
            ("kv_cache_usage_perc", self.cache_usage),
        )
        counters = (
            ("prompt_tokens_total", self.prompt_tokens),
            ("generation_tokens_total", self.generation_tokens),
            # A running sequence has a whole slot: it is never preempted.
            ("num_preemptions_total", 0),
        )
        lines = [
            *(line for name, value in gauges for line in _single(name, "gauge", labels, value)),
            *(line for name, value in counters for line in _single(name, "counter", labels, value)),
            *self._finished(labels),
            *_histogram("time_to_first_token_seconds", labels, self.time_to_first_token_s),
            *_histogram("inter_token_latency_seconds", labels, self.inter_token_latency_s),
            *_histogram("e2e_request_latency_seconds", labels, self.e2e_request_latency_s),
        ]
        return "\n".join(lines) + "\n"

    def _finished(self, labels: str) -> Iterator[str]:
        yield "# TYPE vllm:request_success_total counter"
        for reason in FINISH_REASONS:
            count = float(self.finished[reason])
            yield f'vllm:request_success_total{{{labels},finished_reason="{reason}"}} {count}'


def _single(name: str, kind: str, labels: str, value: float) -> Iterator[str]:
    yield f"# TYPE vllm:{name} {kind}"
    yield f"vllm:{name}{{{labels}}} {float(value)}"


def _histogram(name: str, labels: str, histogram: Histogram) -> Iterator[str]:
    yield f"# TYPE vllm:{name} histogram"
    total = 0
    bounds = (*(str(float(bound)) for bound in histogram.bounds), "+Inf")
    for bound, total in zip(bounds, accumulate(histogram.counts), strict=True):
        yield f'vllm:{name}_bucket{{{labels},le="{bound}"}} {float(total)}'
    yield f"vllm:{name}_count{{{labels}}} {float(total)}"
    yield f"vllm:{name}_sum{{{labels}}} {histogram.sum}"


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
