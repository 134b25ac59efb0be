"""A stand-in for pynvml. The JSON file that GATESCOPE_FAKE_NVML names says which GPUs there are:
a figure that a GPU has no key for is not supported, and a `lost` GPU answers nothing."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

FILE = "GATESCOPE_FAKE_NVML"
H200 = {
    "name": "NVIDIA H200",
    "uuid": "GPU-aa000000-0000",
    "used": 500,
    "total": 143771,
    "utilisation": 97,
    "temperature": 81,
    "clock": 1410,
    "reasons": 0x1 | 0x4 | 0x40,
    "processes": {"4242": "/usr/bin/python3"},
}
NVML_TEMPERATURE_GPU, NVML_CLOCK_SM = 0, 1


class NVMLError(Exception):
    pass


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, *gpus: dict[str, Any]) -> None:
    """Have `gpus` in this process, and in those that inherit its environment."""
    (folder / "fake").mkdir(exist_ok=True)
    shutil.copy(__file__, folder / "fake" / "pynvml.py")
    monkeypatch.setenv("PYTHONPATH", str(folder / "fake"))
    monkeypatch.setenv(FILE, str(folder / "fake" / "gpus.json"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", sys.modules[__name__])
    show(*gpus)


def show(*gpus: dict[str, Any]) -> None:
    """Have other GPUs from now on."""
    file = Path(os.environ[FILE])
    file.with_suffix(".new").write_text(json.dumps(gpus))
    file.with_suffix(".new").replace(file)


def shown() -> list[dict[str, Any]]:
    return list(json.loads(Path(os.environ[FILE]).read_text()))


def _figure(gpu: int, key: str) -> Any:
    found = shown()[gpu]
    if "lost" in found or key not in found:
        raise NVMLError(key)
    return found[key]


def nvmlInit() -> None:
    if not shown():
        raise NVMLError("no driver")


def nvmlSystemGetDriverVersion() -> str:
    return "580.159.04"


def nvmlDeviceGetCount() -> int:
    return len(shown())


def nvmlDeviceGetHandleByIndex(index: int) -> int:
    return index


def nvmlDeviceGetHandleByUUID(uuid: str) -> int:
    raise NVMLError("no MIG here")


def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle: object) -> int:
    raise NVMLError("no MIG here")


def nvmlDeviceGetIndex(handle: object) -> int:
    raise NVMLError("no MIG here")


def nvmlDeviceGetUUID(gpu: int) -> str:
    return str(_figure(gpu, "uuid"))


def nvmlDeviceGetName(gpu: int) -> str:
    return str(_figure(gpu, "name"))


def nvmlDeviceGetMemoryInfo(gpu: int) -> SimpleNamespace:
    used, total = _figure(gpu, "used"), _figure(gpu, "total")
    return SimpleNamespace(used=used << 20, total=total << 20)


def nvmlDeviceGetUtilizationRates(gpu: int) -> SimpleNamespace:
    return SimpleNamespace(gpu=_figure(gpu, "utilisation"))


def nvmlDeviceGetPowerUsage(gpu: int) -> int:
    return int(_figure(gpu, "power_mw"))


def nvmlDeviceGetTemperature(gpu: int, sensor: int) -> int:
    return int({NVML_TEMPERATURE_GPU: _figure(gpu, "temperature")}[sensor])


def nvmlDeviceGetClockInfo(gpu: int, clock: int) -> int:
    return int({NVML_CLOCK_SM: _figure(gpu, "clock")}[clock])


def nvmlDeviceGetCurrentClocksThrottleReasons(gpu: int) -> int:
    return int(_figure(gpu, "reasons"))


def nvmlDeviceGetComputeRunningProcesses(gpu: int) -> list[SimpleNamespace]:
    used = _figure(gpu, "used") << 20
    return [SimpleNamespace(pid=int(pid), usedGpuMemory=used) for pid in _figure(gpu, "processes")]


def nvmlSystemGetProcessName(pid: int) -> str:
    names = {key: name for gpu in shown() for key, name in gpu.get("processes", {}).items()}
    if not names.get(str(pid)):
        raise NVMLError("not found")
    return str(names[str(pid)])


def nvmlDeviceGetTotalEnergyConsumption(gpu: int) -> int:
    """`watts` since this machine started, or the counter's own `millijoules`."""
    if "watts" in shown()[gpu]:
        return int(_figure(gpu, "watts") * time.monotonic() * 1e3)
    return int(_figure(gpu, "millijoules"))


def nvmlDeviceGetEnforcedPowerLimit(gpu: int) -> int:
    return int(_figure(gpu, "limit_w") * 1000)
