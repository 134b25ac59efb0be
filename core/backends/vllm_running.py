"""What a vLLM server runs, according to its log and /version, and where that is not as
requested."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import msgspec

from core.backends import nodes, serverlog
from core.experiment.tables import Backend
from core.files import NOT_JSON
from core.recorder.gatescope_recorder.about import SUFFIX

NOT_RUNNING = ("refused", "disabled")
SILENT = "silent (its level or configuration hides what runs)"

# name in run.json → the log line that shows it, 0.11 to 0.33; the first hit counts.
LINES = {
    "moe_backend": re.compile(
        r"Using '?([\w ]+?)'? (?:\w+ MoE backend|backend for Unquantized MoE)"
    ),
    "moe_prepare_finalize": re.compile(r"Using (\w*PrepareAndFinalize\w*)"),
    "all2all_backend": re.compile(r"Using (\w+) all2all manager"),
    "attention_backend": re.compile(
        r"Using (?:AttentionBackendEnum\.)?([A-Z_]+) (?:attention )?backend\b(?! for)"
    ),
    "dtype": re.compile(r"V1 LLM engine .*?\bdtype=torch\.(\w+)"),
    "tensor_parallel_size": re.compile(r"V1 LLM engine .*?\btensor_parallel_size=(\d+)"),
    "pipeline_parallel_size": re.compile(r"V1 LLM engine .*?\bpipeline_parallel_size=(\d+)"),
    "data_parallel_size": re.compile(r"V1 LLM engine .*?\bdata_parallel_size=(\d+)"),
    "quantization": re.compile(r"V1 LLM engine .*?\bquantization=(\w+)"),
    "prefix_caching": re.compile(r"V1 LLM engine .*?\benable_prefix_caching=(\w+)"),
    "cudagraph_mode": re.compile(
        r"V1 LLM engine .*?'?cudagraph_mode'?[:=] ?<?(?:CUDAGraphMode\.)?(\w+)"
    ),
    "expert_parallel_size": re.compile(r"\[EP Rank \d+/(\d+)\] Expert parallelism is enabled"),
    "recorder": re.compile(r"gatescope recorder: (.+)"),
    "forced_routing": re.compile(r"gatescope forced routing: (on .+)"),
}
OLD_FLASHINFER = re.compile(r"Enabling FlashInfer CUTLASS MoE")  # 0.11, which names no other kernel
ENGINE = re.compile(r"V1 LLM engine ")  # the first line that every version writes, where it may
START = re.compile(r"non-default args")  # a log may hold earlier starts, which do not count
TROUBLE = {
    "recorder": re.compile(r"gatescope recorder: ((?:refused|disabled): .+)"),
    "forced_routing": re.compile(r"gatescope forced routing: (refused: .+)"),  # by any rank
}
MANAGERS = {
    "allgather_reducescatter": ("agrs", "allgatherreducescatter"),
    "naive": ("naive",),
    "pplx": ("pplx",),
    "deepep_high_throughput": ("deepepht",),
    "deepep_low_latency": ("deepepll",),
    "deepep_v2": ("deepepv2",),
    "mori_high_throughput": ("mori",),
    "mori_low_latency": ("mori",),
    "moonep": ("moonep",),
    "nixl_ep": ("nixlep",),
    "flashinfer_all2allv": ("flashinferall2all", "flashinfernvlinktwosided"),
    "flashinfer_nvlink_two_sided": ("flashinfernvlinktwosided",),
    "flashinfer_nvlink_one_sided": ("flashinfernvlinkonesided",),
}


def ran(
    version: dict[str, str], log: Path, since: int = 0, gate_logs: Path | None = None
) -> dict[str, str]:
    """What is running: the version from /version; kernels, graphs and layout as the recorder's
    workers wrote them beside `gate_logs`, else from the log, whose lines begin at `since`."""
    known = {"engine": "vllm", **{key: version[key] for key in ("version",) if key in version}}
    own = reported(gate_logs) if gate_logs else {}
    found, is_silent = known | own, True
    for line in serverlog.lines(log, since):
        if START.search(line):
            found = known | own
        is_silent = is_silent and not ENGINE.search(line)
        for key, pattern in LINES.items():
            if key not in found and (hit := pattern.search(line)):
                found[key] = hit.group(1).strip()
        if OLD_FLASHINFER.search(line):
            found["moe_backend"] = "FlashInfer CUTLASS"
        for key, pattern in TROUBLE.items():
            if hit := pattern.search(line):
                found[key] = hit.group(1).strip()
    if own and is_silent:
        found["log"] = SILENT
    version_ran = release(found.get("version", ""))
    is_old = version_ran is not None and version_ran <= (0, 15)
    if "moe_backend" not in found and is_old and "log" not in found:
        found["moe_backend"] = "TRITON (this version's default; it logs no name)"
    found.setdefault("expert_parallel_size", "1")
    return found | (nodes.ran(gate_logs) if gate_logs else {})


def reported(gate_logs: Path) -> dict[str, str]:
    """What the workers of one start wrote of themselves: the first one's facts, but a refusal by
    any of them."""
    found: dict[str, str] = {}
    for file in sorted(gate_logs.glob(f"*{SUFFIX}")):
        with contextlib.suppress(OSError, *NOT_JSON):
            about = msgspec.json.decode(file.read_bytes(), type=dict[str, str])
            for key, value in about.items():
                if key not in found or (key in TROUBLE and value.startswith(NOT_RUNNING)):
                    found[key] = value
    return {key: value for key, value in found.items() if key in LINES}


def release(version: str) -> tuple[int, int] | None:
    """(0, 25) of "0.25.1"; None for what names no release: "dev", a commit, or the "0.1.dev1" that
    a build without its repository's tags calls itself."""
    hit = re.match(r"v?(\d+)\.(\d+)(?!\d*\.?dev)", version)
    return (int(hit[1]), int(hit[2])) if hit else None


def mismatches(backend: Backend, ran: dict[str, str]) -> list[str]:
    """What is running but was not requested, a sentence each; also what the log does not show, and
    why the router is not recorded."""
    checks = (
        _kernel_mismatch(backend, ran),
        _all2all_mismatch(backend, ran),
        *_layout_mismatches(backend, ran),
        _graphs_mismatch(backend, ran),
        _recorder_mismatch(ran),
    )
    return [sentence for sentence in checks if sentence]


def _kernel_mismatch(backend: Backend, ran: dict[str, str]) -> str:
    wanted, running = backend.moe_backend, ran.get("moe_backend")
    if wanted in ("", "auto"):
        return ""
    if running is None:
        if "log" in ran:
            return ""  # nothing says that it differs
        return f"requested moe_backend {wanted}; the server's log does not name its kernel"
    if _plain(running).startswith(_plain(wanted)):
        return ""
    return f"requested moe_backend {wanted}, running {running}"


def _all2all_mismatch(backend: Backend, ran: dict[str, str]) -> str:
    wanted, running = backend.all2all_backend, ran.get("all2all_backend")
    if not wanted or backend.ranks == 1:
        return ""
    if running is None:
        if "log" in ran:
            return ""
        return f"requested all2all_backend {wanted}; the server's log names no all2all manager"
    if _plain(running).startswith(MANAGERS.get(wanted, (_plain(wanted),))):
        return ""
    return f"requested all2all_backend {wanted}, running {running}"


def _layout_mismatches(backend: Backend, ran: dict[str, str]) -> list[str]:
    wanted = {
        "tensor_parallel_size": str(backend.tensor_parallel),
        "data_parallel_size": str(backend.data_parallel),
        "expert_parallel_size": str(backend.ranks if backend.expert_parallel else 1),
    }
    return [
        f"requested {key} {value}, running {ran[key]}"
        for key, value in wanted.items()
        if key in ran and ran[key] != value
    ]


def _graphs_mismatch(backend: Backend, ran: dict[str, str]) -> str:
    mode = ran.get("cudagraph_mode", "")
    if backend.enforce_eager and mode not in ("", "NONE"):
        return f"requested enforce_eager, running with CUDA graphs ({mode})"
    if not backend.enforce_eager and mode == "NONE":
        return "requested CUDA graphs (enforce_eager = false), running without them"
    return ""


def _recorder_mismatch(ran: dict[str, str]) -> str:
    state = ran.get("recorder", "")
    if not state:
        return "the router is not recorded: the recorder was not loaded (is VLLM_PLUGINS set?)"
    if state.startswith(NOT_RUNNING):
        return f"the router is not recorded: {state}"
    return ""


def _plain(name: str) -> str:
    """Names of one thing differ in case and separators: FlashInfer CUTLASS, flashinfer_cutlass."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
