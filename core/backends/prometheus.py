"""A server's own counts, from GET /metrics."""

from __future__ import annotations

import contextlib
import math
import re

import httpx

from core import fetch
from core.experiment.events import ServerLoad

MAX_METRICS_BYTES = 1 << 21  # vLLM's are 50 kB
METRIC = re.compile(r"^vllm:(\w+)(?:\{[^}]*\})? ([-+0-9.eE]+)$", re.MULTILINE)
PREFIX_HITS = ("prefix_cache_hits_total", "gpu_prefix_cache_hits_total")
KV_CACHE = ("kv_cache_usage_perc", "gpu_cache_usage_perc")  # its name until vLLM 0.11, and now


async def server_load(client: httpx.AsyncClient, base_url: str) -> ServerLoad | None:
    """Counts from GET /metrics, summed over the server's engines; None where it does not answer in
    time."""
    try:
        text = (
            await fetch.whole(
                client, "GET", f"{base_url}/metrics", within_s=0.5, max_bytes=MAX_METRICS_BYTES
            )
        ).text
    except httpx.HTTPError:
        return None
    return read_metrics(text)


def read_metrics(text: str) -> ServerLoad:
    """The counts in Prometheus' text format; what is no finite number there is left out."""
    values: dict[str, list[float]] = {}
    for name, written in METRIC.findall(text):
        with contextlib.suppress(ValueError):
            if math.isfinite(value := float(written)):
                values.setdefault(name, []).append(value)
    usage = next((values[n] for n in KV_CACHE if n in values), [0.0])
    return ServerLoad(
        running=round(sum(values.get("num_requests_running", []))),
        waiting=round(sum(values.get("num_requests_waiting", []))),
        kv_cache=sum(usage) / len(usage),
        preemptions=round(sum(values.get("num_preemptions_total", []))),
        prefix_cache_hits=round(sum(sum(values.get(name, [])) for name in PREFIX_HITS)),
    )
