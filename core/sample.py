"""What can be seen once a second while a run runs: the server's own counts, the GPUs, the router's last steps."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import httpx
import numpy as np

from core import fetch, imbalance
from core.events import Gpu, LiveImbalance, ServerLoad
from core.gatelog import GateLog, GateLogError

GIB = 1 << 30
MAX_METRICS_BYTES = 1 << 21  # vLLM's are 50 kB
METRIC = re.compile(r"^vllm:(\w+)(?:\{[^}]*\})? ([-+0-9.eE]+)$", re.MULTILINE)
KV_CACHE = ("kv_cache_usage_perc", "gpu_cache_usage_perc")  # its name until vLLM 0.11, and now


async def server_load(client: httpx.AsyncClient, base_url: str) -> ServerLoad | None:
    """Counts from GET /metrics, summed over the server's engines; None where it does not answer in time."""
    try:
        text = (await fetch.whole(client, "GET", f"{base_url}/metrics", within_s=0.5, max_bytes=MAX_METRICS_BYTES)).text
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
    )


def gpus() -> list[Gpu]:
    """Every GPU that NVML shows; none where there is no driver."""
    return list(_gpus(_nvml())) if _nvml() else []


@cache
def _nvml() -> Any:
    """The NVML module, initialised; None where there is no NVIDIA driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except (ImportError, OSError, pynvml.NVMLError):
        return None
    return pynvml


def _gpus(nvml: Any) -> Iterator[Gpu]:
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        yield Gpu(
            index=index,
            memory_used_gib=memory.used / GIB,
            memory_total_gib=memory.total / GIB,
            utilisation_pct=nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
            power_w=nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
            temperature_c=nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        )


def live_imbalance(log: GateLog, label: str) -> LiveImbalance | None:
    """The run's steps in `log`, in short; None where there are none."""
    try:
        measured = imbalance.measure_segment(log, label)
    except GateLogError:
        return None
    by_layer = log.of(label).loads.sum(axis=0)
    layer, expert = np.unravel_index(int(by_layer.argmax()), by_layer.shape)
    return LiveImbalance(
        cv=measured.per_step_cv,
        excess_cv=measured.excess_cv,
        rank_imbalance=measured.rank_imbalance,
        layer=int(layer),
        expert=int(expert),
        share=float(by_layer[layer, expert] / by_layer[layer].sum()),
    )
