"""vLLM in any environment: the command line for its version, and what is running according to its
log and /version."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.backends import moekernel, nvml
from core.backends.launch import Launch, as_words
from core.errors import BackendError, ConfigError
from core.experiment.config import Backend, Model

RECORDER = (
    Path(__file__).parents[1] / "recorder"
)  # put on PYTHONPATH: a package and its entry point
GATE_LOGS = "GATESCOPE_GATE_LOGS"
PLUGIN = "gatescope_recorder"
OLDEST = (0, 11)
FORCED = (
    "set_capture_fn",
    "_compute_routing",
)  # router hooks of versions whose routers can be forced: 0.15 on
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")  # names in a model's config.json

# Runs in the other interpreter. Looks for vLLM without importing it, which would take ten seconds.
QUERY = """
import importlib.util, json, pathlib, re
spec = importlib.util.find_spec("vllm")
folders = list(spec.submodule_search_locations or []) if spec else []
place = pathlib.Path(folders[0]) if folders else None
text = (place / "_version.py").read_text() if place else ""
found = re.search(r"__version__ = (?:version = )?['\\"]([^'\\"]+)", text)
module = bool(place) and (place / "entrypoints/openai/api_server.py").exists()
flags = place / "engine/arg_utils.py" if place else pathlib.Path("/nowhere")
has_moe_flag = flags.exists() and '"--moe-backend"' in flags.read_text()
moe = place / "model_executor/layers/fused_moe" if place else pathlib.Path("/nowhere")
files = [moe / name for name in ("router/base_router.py", "layer.py")]
sources = [file.read_text() for file in files if file.exists()]
hooks = ("set_capture_fn", "_compute_routing", "select_experts")
hook = next((name for name in hooks if any("def " + name in text for text in sources)), "")
version = found.group(1) if found else ""
found = {"version": version, "has_module": module, "has_moe_flag": has_moe_flag, "hook": hook}
print(json.dumps(found))
"""


@dataclass(frozen=True, slots=True)
class Installed:
    """The vLLM of one interpreter."""

    python: str
    version: str
    has_module: bool = (
        True  # `python -m vllm.entrypoints.openai.api_server`; else `vllm serve`'s own module
    )
    has_moe_flag: bool = True  # --moe-backend came between 0.15 and 0.20
    hook: str = ""  # how its routers are tapped

    @property
    def release(self) -> tuple[int, int]:
        """(0, 25) of "0.25.1"."""
        numbers = re.findall(r"\d+", self.version)
        return int(numbers[0]), int(numbers[1])


# --- finding it ---


def find(python: str = "") -> Installed | None:
    """The vLLM that this interpreter ("": ours) would import; None where it has none. BackendError
    where there is no such interpreter."""
    return _find(python or sys.executable)


@functools.cache
def _find(python: str) -> Installed | None:
    try:
        done = subprocess.run(
            [python, "-c", QUERY], capture_output=True, text=True, timeout=60, env=_safe_path()
        )
        found = json.loads(done.stdout)
    except FileNotFoundError:
        raise BackendError(
            f"{python}: no such interpreter; python in [[backends]] names one that has vLLM"
        ) from None
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        raise BackendError(f"{python}: not a working Python interpreter: {error}") from None
    return Installed(python, **found) if found["version"] else None


def _safe_path() -> dict[str, str]:
    """A folder named like a library in the working directory must not be imported for it."""
    return {**os.environ, "PYTHONSAFEPATH": "1"}


# --- starting it ---


def launch(backend: Backend, model: Model, gate_logs: Path | None, seed: int) -> Launch:
    """How to serve `model` as `backend` asks. `gate_logs`: a folder for this start's logs; None:
    nothing is recorded.

    BackendError as `check`.
    """
    installed = check(backend)
    command = [*_program(installed, model.id), *arguments(backend, model, seed, installed)]
    env = environment(backend, gate_logs, installed, os.environ)
    return Launch(command, env, model.id, model.id, label(model, [installed.version]))


def label(model: Model, versions: Sequence[str]) -> str:
    """The engine as it is shown and written."""
    engine = f"vllm {', '.join(dict.fromkeys(versions))}"
    return f"{engine}, dummy weights" if model.load_format == "dummy" else engine


def check(backend: Backend) -> Installed:
    """The vLLM that serves this backend. BackendError where its interpreter has none, or one that
    cannot do what is asked."""
    installed = find(backend.python)
    if installed is None:
        raise BackendError(
            f"[[backends]] {backend.name}: {backend.python or sys.executable} has no vLLM;"
            " install it there (pip install vllm), or name another environment's interpreter"
            " with python = …"
        )
    if installed.release < OLDEST:
        raise BackendError(
            f"[[backends]] {backend.name}: vLLM {installed.version} is too old;"
            " 0.11 or newer is needed"
        )
    _moe_backend(backend, installed)
    return installed


def check_forcing(backend: Backend) -> None:
    """BackendError where routing cannot be forced in this backend's vLLM; else as `check`."""
    installed = check(backend)
    if installed.hook not in FORCED:
        raise BackendError(
            f"[[backends]] {backend.name}: vLLM {installed.version} has no router whose choice"
            " could be replaced; forced routing needs 0.15 or newer"
        )


def warmup_input_lens(backend: Backend, model: Model) -> tuple[int, ...]:
    """Prompt lengths in tokens that, each alone in its step, compile every variant of the Triton
    MoE kernel within reach.

    They do not depend on the backend's kernel, so that all backends are warmed up alike. Empty
    without an NVIDIA GPU, and for a model of unknown shape.
    """
    shape = moe_shape(model.id)
    if not shape or not nvml.seen(backend.env):
        return ()
    idle = backend.data_parallel - 1  # the kernel gets all ranks' tokens, of an idle rank one dummy
    longest = min(backend.max_num_batched_tokens, model.max_model_len - 1)
    return tuple(
        size - idle for size in moekernel.step_sizes(longest + idle, *shape) if size > idle
    )


def moe_shape(model: str) -> tuple[int, int] | None:
    """Experts per layer and per token, from the config.json of a model on this machine."""
    for file in (Path(model) / "config.json", *_cached(model)):
        try:
            about = json.loads(file.read_text())
        except (OSError, ValueError):
            continue
        about = about.get("text_config", about)
        experts = next((about[key] for key in EXPERTS if about.get(key)), None)
        if experts and about.get("num_experts_per_tok"):
            return int(experts), int(about["num_experts_per_tok"])
    return None


def _cached(model: str) -> list[Path]:
    cache = Path(os.environ.get("HF_HOME", Path.home() / ".cache/huggingface")) / "hub"
    return sorted((cache / f"models--{model.replace('/', '--')}").glob("snapshots/*/config.json"))


def _program(installed: Installed, model: str) -> list[str]:
    if installed.has_module:
        return [installed.python, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    return [installed.python, "-m", "vllm.entrypoints.cli.main", "serve", model]


def arguments(backend: Backend, model: Model, seed: int, installed: Installed) -> list[str]:
    """The server's arguments behind the model's name, in this version's spelling; `extra_args`
    last, as they are."""
    options: dict[str, str | int] = {
        "--host": "127.0.0.1",
        "--port": backend.port,
        "--served-model-name": model.id,
        "--load-format": model.load_format,
        "--max-model-len": model.max_model_len,
        "--max-num-seqs": backend.max_num_seqs,
        "--max-num-batched-tokens": backend.max_num_batched_tokens,
        "--seed": seed,
        # A cached prompt is not computed: repeated prompts would vanish from prefill.
        "--no-enable-prefix-caching": True,
        "--enforce-eager": backend.enforce_eager,
        "--tensor-parallel-size": backend.tensor_parallel,
        "--data-parallel-size": backend.data_parallel if backend.data_parallel > 1 else "",
        "--enable-expert-parallel": backend.expert_parallel,
        "--enable-eplb": backend.eplb,
        "--all2all-backend": backend.all2all_backend,
        "--moe-backend": _moe_backend(backend, installed),
    }
    return [*as_words(options), *backend.extra_args]


def _moe_backend(backend: Backend, installed: Installed) -> str:
    """The value of --moe-backend, if any: versions without it choose FlashInfer by the environment,
    and Triton by default."""
    if not backend.moe_backend or installed.has_moe_flag:
        return backend.moe_backend
    if backend.moe_backend not in ("auto", "triton", "flashinfer_cutlass"):
        raise ConfigError(
            f"[[backends]] {backend.name}, moe_backend: vLLM {installed.version} has no"
            " --moe-backend and offers 'triton' and 'flashinfer_cutlass' only,"
            f" got {backend.moe_backend!r}"
        )
    return ""


def environment(
    backend: Backend, gate_logs: Path | None, installed: Installed, ours: Mapping[str, str]
) -> dict[str, str]:
    """What is added to `ours`, the environment the server inherits. The user's own `env` overrides
    all but PYTHONPATH and VLLM_PLUGINS, which are added to."""
    added = {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", "VLLM_NO_USAGE_STATS": "1"}
    if backend.moe_backend == "flashinfer_cutlass" and not installed.has_moe_flag:
        added |= {"VLLM_USE_FLASHINFER_MOE_FP16": "1", "VLLM_FLASHINFER_MOE_BACKEND": "throughput"}
    added |= backend.env
    if gate_logs is None:
        return added
    seen = {**ours, **added}
    path = [str(RECORDER), *([seen["PYTHONPATH"]] if seen.get("PYTHONPATH") else [])]
    added |= {GATE_LOGS: str(gate_logs), "PYTHONPATH": os.pathsep.join(path)}
    if "VLLM_PLUGINS" in seen:
        added["VLLM_PLUGINS"] = ",".join(filter(None, [seen["VLLM_PLUGINS"], PLUGIN]))
    return added


# --- what is running ---

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


def ran(version: dict[str, str], log: Path) -> dict[str, str]:
    """What is running: the version from /version; kernels, graphs and layout from the log."""
    known = {"engine": "vllm", **{key: version[key] for key in ("version",) if key in version}}
    found = dict(known)
    with open(log, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if START.search(line):
                found = dict(known)
            for key, pattern in LINES.items():
                if key not in found and (hit := pattern.search(line)):
                    found[key] = hit.group(1).strip()
            if OLD_FLASHINFER.search(line):
                found["moe_backend"] = "FlashInfer CUTLASS"
            for key, pattern in TROUBLE.items():
                if hit := pattern.search(line):
                    found[key] = hit.group(1).strip()
    if "moe_backend" not in found and _release(found.get("version", "")) <= (0, 15):
        found["moe_backend"] = "TRITON (this version's default; it logs no name)"
    found.setdefault("expert_parallel_size", "1")
    return found


def _release(version: str) -> tuple[int, int]:
    numbers = re.findall(r"\d+", version)
    return (int(numbers[0]), int(numbers[1])) if len(numbers) > 1 else (9999, 0)


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
        return f"requested moe_backend {wanted}; the server's log does not name its kernel"
    if _plain(running).startswith(_plain(wanted)):
        return ""
    return f"requested moe_backend {wanted}, running {running}"


def _all2all_mismatch(backend: Backend, ran: dict[str, str]) -> str:
    wanted, running = backend.all2all_backend, ran.get("all2all_backend")
    if not wanted or backend.ranks == 1:
        return ""
    if running is None:
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
    if state.startswith(("refused", "disabled")):
        return f"the router is not recorded: {state}"
    return ""


def _plain(name: str) -> str:
    """Names of one thing differ in case and separators: FlashInfer CUTLASS, flashinfer_cutlass."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
