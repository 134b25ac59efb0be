from __future__ import annotations

from pathlib import Path

import pytest

from core.backends import serverlog

STAMP = "(EngineCore_DP0 pid=77) ERROR 11-24 13:00:01 [core.py:708] "

DEATHS = {
    "a worker's memory": (
        [
            "(Worker_TP1 pid=78) ERROR 11-24 13:00:00 [multiproc_executor.py:597] Traceback (most recent call last):",
            "(Worker_TP1 pid=78) ERROR 11-24 13:00:00 [multiproc_executor.py:597]   File x.py, line 3, in load",
            "(Worker_TP1 pid=78) ERROR 11-24 13:00:00 [multiproc_executor.py:597] torch.OutOfMemoryError: CUDA out of"
            " memory. Tried to allocate 2.00 GiB.",
            STAMP + "Exception: WorkerProc initialization failed due to an exception in a background process.",
            "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
        ],
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
    ),
    "a kernel that does not fit": (
        [
            STAMP + "ValueError: Unquantized MoE backend FLASHINFER_CUTLASS does not support the deployment",
            "RuntimeError: Engine core initialization failed. See root cause above.",
        ],
        "ValueError: Unquantized MoE backend FLASHINFER_CUTLASS does not support the deployment",
    ),
    "a port in use": (
        ["ERROR:    [Errno 98] error while attempting to bind: address already in use", "later line"],
        "ERROR:    [Errno 98] error while attempting to bind: address already in use",
    ),
    "a flag it does not know": (
        ["usage: api_server.py [-h]", "api_server.py: error: unrecognized arguments: --moe-backend triton"],
        "api_server.py: error: unrecognized arguments: --moe-backend triton",
    ),
    "no vLLM in that environment": (
        ["/usr/bin/python3: Error while finding module", "ModuleNotFoundError: No module named 'vllm'"],
        "ModuleNotFoundError: No module named 'vllm'",
    ),
    "a handled failure before the known one": (
        ["ImportError: no flash attention here", "torch.OutOfMemoryError: CUDA out of memory."],
        "torch.OutOfMemoryError: CUDA out of memory.",
    ),
}


@pytest.mark.parametrize("case", DEATHS)
def test_root_cause(case: str, tmp_path: Path) -> None:
    lines, cause = DEATHS[case]
    log = tmp_path / "server.log"
    log.write_text("".join(f"{line}\n" for line in lines))
    assert serverlog.root_cause(log) == cause


def test_root_cause_of_an_earlier_start_is_not_taken(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("ValueError: of the start before\n")
    start = log.stat().st_size
    with open(log, "a") as more:
        more.write("OSError: of this start\n")
    assert serverlog.root_cause(log, start) == "OSError: of this start"
    assert serverlog.tail(log, start) == ["OSError: of this start"]


def test_phases_are_told_once_as_the_log_grows(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("INFO 11-24 13:00:00 [gpu_model_runner.py:3] Starting to load model tiny...\nLoading safet")
    phases = serverlog.PhaseFollower(log)
    assert list(phases.read()) == ["loading weights"]
    with open(log, "a") as more:
        more.write("ensors checkpoint shards: 100%\n[backends.py:1] Start compiling function\n")
        more.write("Capturing CUDA graphs (decode, FULL):  50%|##\rCapturing CUDA gra")
    assert list(phases.read()) == ["compiling", "capturing graphs"]
    with open(log, "a") as more:
        more.write("phs: 100%\nGraph capturing finished in 9 secs\ninit engine (profile, create kv cache) took 3 s\n")
    assert list(phases.read()) == ["warming up", "starting the API server"]
    assert list(phases.read()) == []
