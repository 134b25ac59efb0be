"""What can be seen once a second while a run runs: the server's own counts, the GPUs, the router's last steps."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import httpx
import numpy as np

from core import fetch
from core.experiment.events import Gpu, LiveImbalance, ServerLoad
from core.routing import imbalance
from core.routing.gatelog import GateLog, GateLogError

T = TypeVar("T")
GIB = 1 << 30
MAX_METRICS_BYTES = 1 << 21  # vLLM's are 50 kB
POWER_CAP = "the power limit"
# Bits of nvmlDeviceGetCurrentClocksThrottleReasons (nvml.h, nvmlClocksEventReason*).
THROTTLES = {
    0x4: POWER_CAP,
    0x8: "the hardware",
    0x20: "heat (driver)",
    0x40: "heat (hardware)",
    0x80: "the power brake",
}
METRIC = re.compile(r"^vllm:(\w+)(?:\{[^}]*\})? ([-+0-9.eE]+)$", re.MULTILINE)
PREFIX_HITS = ("prefix_cache_hits_total", "gpu_prefix_cache_hits_total")
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
        prefix_cache_hits=round(sum(sum(values.get(name, [])) for name in PREFIX_HITS)),
    )


def gpus() -> list[Gpu]:
    """Every GPU that NVML shows; none where there is no driver."""
    nvml = _nvml()
    return [_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount())] if nvml else []


@cache
def _nvml() -> Any:
    """The NVML module, initialised; None where there is no NVIDIA driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except (ImportError, OSError, pynvml.NVMLError):
        return None
    return pynvml


def _gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)

    def told(ask: Callable[[], T]) -> T | None:
        try:
            return ask()
        except nvml.NVMLError:  # not supported here
            return None

    return Gpu(
        index=index,
        memory_used_gib=memory.used / GIB,
        memory_total_gib=memory.total / GIB,
        utilisation_pct=told(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
        power_w=told(lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3),
        temperature_c=told(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        sm_clock_mhz=told(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
        throttled=told(lambda: throttles(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))),
    )


def throttles(bits: int) -> list[str]:
    """NVML's clock event reasons in words; idle and clocks that a person set are none."""
    return [name for bit, name in THROTTLES.items() if bits & bit]


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
