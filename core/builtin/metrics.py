"""The engine's counters, and their text in Prometheus' format under vLLM's names."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

TTFT_BUCKETS_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
ITL_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10)


class Histogram:
    """Counts of observations up to each bound, their sum and number."""

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
    """What the engine counts. One thread writes; a reader may see one step half counted."""

    running: int = 0
    waiting: int = 0
    cache_usage: float = 0.0  # share of the KV cache that holds tokens
    prompt_tokens: int = 0
    generation_tokens: int = 0
    time_to_first_token_s: Histogram = field(default_factory=lambda: Histogram(TTFT_BUCKETS_S))
    inter_token_latency_s: Histogram = field(default_factory=lambda: Histogram(ITL_BUCKETS_S))

    def render(self, model: str) -> str:
        """Prometheus' text."""
        labels = f'engine="0",model_name="{model}"'
        gauges = (
            ("num_requests_running", self.running),
            ("num_requests_waiting", self.waiting),
            ("kv_cache_usage_perc", self.cache_usage),
        )
        counters = (
            ("prompt_tokens_total", self.prompt_tokens),
            ("generation_tokens_total", self.generation_tokens),
            ("num_preemptions_total", 0),  # a running sequence owns its whole slot: it is never put back
        )
        lines = [
            *(line for name, value in gauges for line in _single(name, "gauge", labels, value)),
            *(line for name, value in counters for line in _single(name, "counter", labels, value)),
            *_histogram("time_to_first_token_seconds", labels, self.time_to_first_token_s),
            *_histogram("inter_token_latency_seconds", labels, self.inter_token_latency_s),
        ]
        return "\n".join(lines) + "\n"


def _single(name: str, kind: str, labels: str, value: float) -> Iterator[str]:
    yield f"# TYPE vllm:{name.removesuffix('_total')} {kind}"
    yield f"vllm:{name}{{{labels}}} {float(value)}"


def _histogram(name: str, labels: str, histogram: Histogram) -> Iterator[str]:
    yield f"# TYPE vllm:{name} histogram"
    total = 0
    for bound, total in zip((*histogram.bounds, "+Inf"), accumulate(histogram.counts), strict=True):
        yield f'vllm:{name}_bucket{{{labels},le="{bound}"}} {float(total)}'
    yield f"vllm:{name}_count{{{labels}}} {float(total)}"
    yield f"vllm:{name}_sum{{{labels}}} {histogram.sum}"
