"""The NVIDIA GPUs that we may use, as NVML shows them: their memory, and their figures each second.

Without a driver there are none. An NVMLError at any call costs that figure or that GPU and nothing
else: a figure may be unsupported (as on a MIG slice), and a GPU can be lost at any time. A GPU that
CUDA_VISIBLE_DEVICES hides is not ours: it is neither counted nor waited for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from core.experiment import events
from core.experiment.events import POWER_CAP

MIB, GIB = 1 << 20, 1 << 30
SLACK_MIB = 512  # a driver keeps some for itself
POLL_S = 0.2
VISIBLE = "CUDA_VISIBLE_DEVICES"
# Bits of nvmlDeviceGetCurrentClocksThrottleReasons (nvml.h, nvmlClocksEventReason*).
THROTTLES = {
    0x4: POWER_CAP,
    0x8: "the hardware",
    0x20: "heat (driver)",
    0x40: "heat (hardware)",
    0x80: "the power brake",
}


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU at one moment; `index` is NVML's. Memory in MiB, None where NVML does not know it."""

    index: int
    name: str
    used: int | None
    total: int | None
    handle: object = field(compare=False, repr=False)


# --- what is there ---


def seen(env: Mapping[str, str] | None = None) -> list[Device]:
    """The GPUs of a process that has our environment with `env` added."""
    if (nvml := _nvml()) is None:
        return []
    visible = {**os.environ, **(env or {})}.get(VISIBLE)
    found = [
        _device(nvml, index, handle)
        for index, handle in _visible(nvml, _all_handles(nvml), visible)
    ]
    return [device for device in found if device is not None]


def described() -> list[str]:
    """A line for each GPU: index, name, memory, driver."""
    if (nvml := _nvml()) is None:
        return []
    driver = _asked(nvml, "nvmlSystemGetDriverVersion") or "[N/A]"
    return [
        f"{gpu.index}, {gpu.name}, {'[N/A]' if gpu.total is None else f'{gpu.total} MiB'}, {driver}"
        for gpu in seen()
    ]


def sample(env: Mapping[str, str] | None = None) -> list[events.Gpu]:
    """The figures now of each GPU that `seen` shows."""
    nvml = _nvml()
    return [_figures(nvml, device) for device in seen(env)] if nvml else []


def energy_j(device: Device) -> float | None:
    """What a GPU has used since its driver was loaded."""
    nvml = _nvml()
    millijoules = (
        _asked(nvml, "nvmlDeviceGetTotalEnergyConsumption", device.handle) if nvml else None
    )
    return None if millijoules is None else millijoules / 1e3


def serial(device: Device) -> str:
    """What tells a GPU from all others: its serial number, else (GeForce, MIG) its UUID; empty
    where NVML knows neither."""
    nvml = _nvml()
    calls = ("nvmlDeviceGetSerial", "nvmlDeviceGetUUID")
    found = [_asked(nvml, call, device.handle) for call in calls] if nvml else []
    return next((str(one) for one in found if one), "")


def sm_clock_mhz(device: Device) -> float | None:
    """The clock of a GPU's processors now."""
    nvml = _nvml()
    return (
        _asked(nvml, "nvmlDeviceGetClockInfo", device.handle, nvml.NVML_CLOCK_SM) if nvml else None
    )


def power_limit_w(device: Device) -> float | None:
    """The power limit that a GPU keeps to."""
    nvml = _nvml()
    milliwatts = _asked(nvml, "nvmlDeviceGetEnforcedPowerLimit", device.handle) if nvml else None
    return None if milliwatts is None else milliwatts / 1e3


def throttles(bits: int) -> list[str]:
    """NVML's clock event reasons in words; idle, and clocks that somebody has set, are not
    listed."""
    return [name for bit, name in THROTTLES.items() if bits & bit]


def _nvml() -> ModuleType | None:
    """The NVML module, initialised (a second time costs nothing); None without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except (OSError, pynvml.NVMLError):
        return None
    nvml: ModuleType = pynvml
    return nvml


def _asked(nvml: ModuleType, call: str, *arguments: object) -> Any:
    """NVML's answer; None if it has none, or this NVML module has no such call."""
    try:
        return getattr(nvml, call)(*arguments)
    except (nvml.NVMLError, AttributeError):
        return None


def _all_handles(nvml: ModuleType) -> dict[int, object]:
    count = _asked(nvml, "nvmlDeviceGetCount") or 0
    handles = {i: _asked(nvml, "nvmlDeviceGetHandleByIndex", i) for i in range(count)}
    return {index: handle for index, handle in handles.items() if handle is not None}


def _visible(
    nvml: ModuleType, handles: dict[int, object], setting: str | None
) -> list[tuple[int, object]]:
    """Index and handle of each GPU that a value of CUDA_VISIBLE_DEVICES leaves visible."""
    if setting is None:
        return list(handles.items())
    ours: list[tuple[int, object]] = []
    for name in setting.split(","):
        found = _named(nvml, handles, name.strip())
        if found is None:
            break  # CUDA too ignores what follows a name that it does not know
        ours.append(found)
    return ours


def _named(nvml: ModuleType, handles: dict[int, object], name: str) -> tuple[int, object] | None:
    """The GPU of an index, a UUID or the start of one, or a MIG slice's UUID."""
    if name.isdecimal() and int(name) in handles:
        return int(name), handles[int(name)]
    if name.startswith("GPU-"):
        uuids = {i: _asked(nvml, "nvmlDeviceGetUUID", h) or "" for i, h in handles.items()}
        return next(((i, handles[i]) for i, uuid in uuids.items() if uuid.startswith(name)), None)
    if name.startswith("MIG-"):
        slice_ = _asked(nvml, "nvmlDeviceGetHandleByUUID", name)
        gpu = _asked(nvml, "nvmlDeviceGetDeviceHandleFromMigDeviceHandle", slice_)
        index = _asked(nvml, "nvmlDeviceGetIndex", gpu)
        return None if index is None else (index, slice_)
    return None


def _device(nvml: ModuleType, index: int, handle: object) -> Device | None:
    """None for a GPU that is lost: not even its name can be read."""
    name = _asked(nvml, "nvmlDeviceGetName", handle)
    memory = _asked(nvml, "nvmlDeviceGetMemoryInfo", handle)
    if name is None:
        return None
    if memory is None:
        return Device(index, name, None, None, handle)
    return Device(index, name, memory.used // MIB, memory.total // MIB, handle)


def _figures(nvml: ModuleType, device: Device) -> events.Gpu:
    handle = device.handle
    memory = _asked(nvml, "nvmlDeviceGetMemoryInfo", handle)
    rates = _asked(nvml, "nvmlDeviceGetUtilizationRates", handle)
    milliwatts = _asked(nvml, "nvmlDeviceGetPowerUsage", handle)
    reasons = _asked(nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", handle)
    return events.Gpu(
        index=device.index,
        memory_used_gib=None if memory is None else memory.used / GIB,
        memory_total_gib=None if memory is None else memory.total / GIB,
        utilisation_pct=None if rates is None else rates.gpu,
        power_w=None if milliwatts is None else milliwatts / 1e3,
        temperature_c=_asked(nvml, "nvmlDeviceGetTemperature", handle, nvml.NVML_TEMPERATURE_GPU),
        sm_clock_mhz=_asked(nvml, "nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_SM),
        throttled=None if reasons is None else throttles(reasons),
    )


# --- waiting for memory ---


def wait_free(before: Sequence[Device], timeout_s: float = 30.0) -> list[str]:
    """Wait until no GPU holds much more memory than it did `before`; a sentence for each that
    still does when time is up.

    A process is gone before the driver has taken its memory back, and the next server would find it
    missing.
    """
    deadline = time.monotonic() + timeout_s
    while held := [sentence for gpu in before if (sentence := _held(gpu))]:
        if time.monotonic() > deadline:
            return held
        time.sleep(POLL_S)
    return []


def _held(before: Device) -> str:
    """What a GPU still holds, and for which processes; empty where it is free or unknown."""
    if before.used is None:
        return ""
    nvml = _nvml()
    now = _device(nvml, before.index, before.handle) if nvml else None
    if nvml is None or now is None or now.used is None:
        return f"NVML no longer shows GPU {before.index}, which was there before the server started"
    more = now.used - before.used
    if more <= SLACK_MIB:
        return ""
    who = ", ".join(_holders(nvml, now.handle)) or "no process that NVML shows"
    return (
        f"GPU {now.index} still holds {more} MiB more than before the server started;"
        f" memory is held by {who}"
    )


def _holders(nvml: ModuleType, handle: object) -> list[str]:
    """Every process that holds memory of a GPU. Names and sizes are unknown across containers."""
    found = []
    for process in _asked(nvml, "nvmlDeviceGetComputeRunningProcesses", handle) or ():
        name = _asked(nvml, "nvmlSystemGetProcessName", process.pid)
        size = process.usedGpuMemory
        about = [name or "", "" if size is None else f"{size // MIB} MiB"]
        found.append(f"process {process.pid} ({', '.join(filter(None, about)) or 'unknown'})")
    return found
