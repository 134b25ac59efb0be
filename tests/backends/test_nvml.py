"""The GPUs that we may use, their memory and figures, whatever NVML fails to say."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support import fake_nvml
from support.fake_nvml import H200

from core.backends import nvml, server
from core.backends.nvml import Device

OTHER = {**H200, "uuid": "GPU-bb000000-0000", "used": 700}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two GPUs."""
    fake_nvml.install(tmp_path, monkeypatch, H200, OTHER)
    return tmp_path


def without(gpu: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in gpu.items() if key not in keys}


def test_each_gpu_has_a_name_and_memory_in_mib(machine: Path) -> None:
    assert nvml.seen() == [
        Device(0, "NVIDIA H200", 500, 143771, None),
        Device(1, "NVIDIA H200", 700, 143771, None),
    ]


def test_run_json_holds_a_line_for_each(machine: Path) -> None:
    assert nvml.described() == [
        "0, NVIDIA H200, 143771 MiB, 580.159.04",
        "1, NVIDIA H200, 143771 MiB, 580.159.04",
    ]
    fake_nvml.show(without(H200, "used"))
    assert nvml.described() == ["0, NVIDIA H200, [N/A], 580.159.04"]


def test_a_machine_without_a_driver_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_nvml.install(tmp_path, monkeypatch)
    assert (nvml.seen(), nvml.described(), nvml.sample()) == ([], [], [])
    assert nvml.wait_free([]) == []


def test_a_sample_holds_the_clock_and_what_limits_it(machine: Path) -> None:
    fake_nvml.show(H200)
    (gpu,) = nvml.sample()
    assert (gpu.utilisation_pct, gpu.temperature_c, gpu.sm_clock_mhz) == (97, 81, 1410)
    assert gpu.memory_used_gib == 500 / 1024
    assert gpu.throttled == ["the power limit", "heat (hardware)"]
    assert gpu.power_w is None  # not supported


@pytest.mark.parametrize(
    ("key", "figure"),
    [
        ("utilisation", "utilisation_pct"),
        ("temperature", "temperature_c"),
        ("clock", "sm_clock_mhz"),
        ("reasons", "throttled"),
    ],
)
def test_an_unsupported_figure_costs_that_figure(machine: Path, key: str, figure: str) -> None:
    fake_nvml.show(without(H200, key), OTHER)
    first, second = nvml.sample()
    assert getattr(first, figure) is None
    assert getattr(second, figure) is not None
    assert [name for name in first.__struct_fields__ if getattr(first, name) is None] == [
        name for name in first.__struct_fields__ if name in (figure, "power_w")
    ]


def test_a_gpu_of_unknown_memory_counts_and_is_not_waited_for(machine: Path) -> None:
    fake_nvml.show(without(H200, "used"), OTHER)
    first, second = nvml.seen()
    assert (first.used, first.total, second.used) == (None, None, 700)
    assert nvml.wait_free([first], timeout_s=0.0) == []
    unknown, known = nvml.sample()
    assert (unknown.memory_used_gib, unknown.memory_total_gib) == (None, None)
    assert (unknown.temperature_c, known.memory_used_gib) == (81, 700 / 1024)


def test_a_call_that_this_nvml_lacks_costs_that_figure(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(fake_nvml, "nvmlDeviceGetCurrentClocksThrottleReasons")
    monkeypatch.delattr(fake_nvml, "nvmlSystemGetDriverVersion")
    assert [gpu.throttled for gpu in nvml.sample()] == [None, None]
    assert nvml.described()[0] == "0, NVIDIA H200, 143771 MiB, [N/A]"


def test_a_sample_leaves_out_what_the_backend_hides(machine: Path) -> None:
    assert [gpu.index for gpu in nvml.sample({"CUDA_VISIBLE_DEVICES": "1"})] == [1]


def test_a_lost_gpu_costs_that_gpu(machine: Path) -> None:
    fake_nvml.show({**H200, "lost": True}, OTHER)
    assert [gpu.index for gpu in nvml.seen()] == [1]
    assert [gpu.index for gpu in nvml.sample()] == [1]
    assert nvml.described() == ["1, NVIDIA H200, 143771 MiB, 580.159.04"]


@pytest.mark.parametrize(
    ("setting", "indices"),
    [
        ("0,1", [0, 1]),
        ("1", [1]),
        ("1, 0", [1, 0]),
        ("", []),
        ("-1", []),
        ("0,7,1", [0]),
        ("GPU-bb000000-0000", [1]),
        ("GPU-aa,GPU-bb", [0, 1]),
        ("GPU-cc", []),
        ("MIG-cc", []),
    ],
)
def test_a_hidden_gpu_is_not_ours(
    machine: Path, monkeypatch: pytest.MonkeyPatch, setting: str, indices: list[int]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)
    assert [gpu.index for gpu in nvml.seen()] == indices
    assert [gpu.index for gpu in nvml.sample()] == indices
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert [gpu.index for gpu in nvml.seen({"CUDA_VISIBLE_DEVICES": setting})] == indices


def test_a_mig_slice_is_a_gpu_with_its_own_memory(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mig = fake_nvml
    monkeypatch.setattr(mig, "nvmlDeviceGetHandleByUUID", {"MIG-1": 1}.__getitem__)
    monkeypatch.setattr(mig, "nvmlDeviceGetDeviceHandleFromMigDeviceHandle", {1: 0}.__getitem__)
    monkeypatch.setattr(mig, "nvmlDeviceGetIndex", {0: 0}.__getitem__)
    (seen,) = nvml.seen({"CUDA_VISIBLE_DEVICES": "MIG-1"})
    assert (seen.index, seen.used) == (0, 700)


class TestWaiting:
    @pytest.fixture(autouse=True)
    def _one(self, machine: Path) -> None:
        fake_nvml.show(H200)

    @staticmethod
    def use(mib: int) -> None:
        fake_nvml.show({**H200, "used": mib})

    def test_ends_when_the_memory_is_free_again(self) -> None:
        before = nvml.seen()
        self.use(700)
        assert nvml.wait_free(before, timeout_s=0.0) == []

    def test_names_the_process_that_still_holds_it(self) -> None:
        before = nvml.seen()
        self.use(90500)
        held = "GPU 0 still holds 90000 MiB more than before the server started; memory is held by"
        assert nvml.wait_free(before, timeout_s=0.0) == [
            f"{held} process 4242 (/usr/bin/python3, 90500 MiB)"
        ]
        fake_nvml.show({**H200, "used": 90500, "processes": {"4242": ""}})
        assert nvml.wait_free(before, timeout_s=0.0) == [f"{held} process 4242 (90500 MiB)"]
        fake_nvml.show({**without(H200, "processes"), "used": 90500})
        assert nvml.wait_free(before, timeout_s=0.0) == [f"{held} no process that NVML shows"]

    def test_does_not_take_a_lost_gpu_to_be_free(self) -> None:
        before = nvml.seen()
        fake_nvml.show({**H200, "lost": True})
        lost = ["NVML no longer shows GPU 0, which was there before the server started"]
        assert nvml.wait_free(before, timeout_s=0.0) == lost
        fake_nvml.show()
        assert nvml.wait_free(before, timeout_s=0.0) == lost

    def test_is_done_before_a_stop_returns(self, tmp_path: Path) -> None:
        """The fake server takes 90000 MiB; the driver has them back a moment after its end."""
        taking = "from support import fake_nvml; fake_nvml.show({**fake_nvml.H200, 'used': 90500})"
        support = Path(__file__).parents[1]
        started = server.start(
            "tiny",
            [sys.executable, "-c", f"{taking}; import time; time.sleep(600)"],
            port=1,
            api_key="k",
            log=tmp_path / "server.log",
            env={"PYTHONPATH": str(support)},
        )
        deadline = time.monotonic() + 30
        while fake_nvml.shown()[0]["used"] != 90500:
            assert time.monotonic() < deadline
        slow_driver = threading.Timer(1.0, self.use, [500])
        slow_driver.start()
        assert started.stop() == []
        assert fake_nvml.shown()[0]["used"] == 500
        slow_driver.join()

    def test_leaves_out_a_hidden_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fake_nvml.show(H200, OTHER)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
        before = nvml.seen()
        fake_nvml.show(H200, {**OTHER, "used": 90500})
        assert nvml.wait_free(before, timeout_s=0.0) == []
