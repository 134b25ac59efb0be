"""What can be seen once a second while a run runs: the server's own counts, the GPUs, the router's
last steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from core.experiment.events import POWER_CAP, Gpu

T = TypeVar("T")
GIB = 1 << 30
# Bits of nvmlDeviceGetCurrentClocksThrottleReasons (nvml.h, nvmlClocksEventReason*).
THROTTLES = {
    0x4: POWER_CAP,
    0x8: "the hardware",
    0x20: "heat (driver)",
    0x40: "heat (hardware)",
    0x80: "the power brake",
}


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
        temperature_c=told(
            lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
        ),
        sm_clock_mhz=told(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
        throttled=told(lambda: throttles(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))),
    )


def throttles(bits: int) -> list[str]:
    """NVML's clock event reasons in words; idle and clocks that a person set are none."""
    return [name for bit, name in THROTTLES.items() if bits & bit]
