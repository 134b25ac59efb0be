"""vLLM in any environment: finding it, and the command line for its version."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.backends import moekernel, nodes, nvml, query
from core.backends.launch import Launch, as_words
from core.backends.modelfiles import moe_shape as moe_shape
from core.backends.vllm_running import mismatches as mismatches
from core.backends.vllm_running import ran as ran
from core.backends.vllm_running import release
from core.errors import BackendError, ConfigError
from core.experiment.tables import Backend, Model

RECORDER = (
    Path(__file__).parents[1] / "recorder"
)  # put on PYTHONPATH: a package and its entry point
GATE_LOGS = "GATESCOPE_GATE_LOGS"
PLUGIN = "gatescope_recorder"
UNKNOWN = "(unknown version)"
API_SERVERS = "--api-server-count"
OLDEST = (0, 11)
FORCED = (
    "set_capture_fn",
    "_compute_routing",
)  # router hooks of versions whose routers can be forced: 0.15 on


@dataclass(frozen=True, slots=True)
class Installed:
    """The vLLM of one interpreter."""

    python: str
    version: str  # as it calls itself; UNKNOWN where nothing names it
    has_module: bool = (
        True  # `python -m vllm.entrypoints.openai.api_server`; else `vllm serve`'s own module
    )
    has_moe_flag: bool = True  # --moe-backend came between 0.15 and 0.20
    hook: str = ""  # how its routers are tapped

    @property
    def release(self) -> tuple[int, int] | None:
        """(0, 25) of "0.25.1"."""
        return release(self.version)


# --- finding it ---


def find(python: str = "") -> Installed | None:
    """The vLLM that this interpreter ("": ours) would import; None where it has none. BackendError
    where there is no such interpreter."""
    return _find(python or sys.executable)


@functools.cache
def _find(python: str) -> Installed | None:
    try:
        done = subprocess.run(
            [python, "-c", Path(query.__file__).read_text()],
            capture_output=True,
            text=True,
            timeout=60,
            env=_safe_path(),
        )
        found = json.loads(done.stdout.splitlines()[-1])  # a site may print something of its own
    except FileNotFoundError:
        raise BackendError(
            f"{python}: no such interpreter; python in [[backends]] names one that has vLLM"
        ) from None
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError) as error:
        raise BackendError(f"{python}: not a working Python interpreter: {error}") from None
    if not found.pop("is_there"):
        return None
    return Installed(python, **{**found, "version": found["version"] or UNKNOWN})


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
    program = _program(installed, model.id, backend.extra_args)
    words = arguments(backend, model, seed, installed)
    command = [*program, *words]
    if backend.nodes > 1:
        command = nodes.command(backend, program, words, gate_logs)
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
    # A build without a known release is taken for what its files show (`hook`, the flags).
    if installed.release is not None and installed.release < OLDEST:
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
    shape = moe_shape(model.id, backend.env)
    if not shape or not nvml.seen(backend.env):
        return ()
    idle = backend.data_parallel - 1  # the kernel gets all ranks' tokens, of an idle rank one dummy
    longest = min(backend.max_num_batched_tokens, model.max_model_len - 1)
    return tuple(
        size - idle for size in moekernel.step_sizes(longest + idle, *shape) if size > idle
    )


def warmup_skipped(backend: Backend, model: Model) -> str:
    """Why the prompts of `warmup_input_lens` cannot be known although kernels will be compiled;
    empty otherwise."""
    if moe_shape(model.id, backend.env) or not nvml.seen(backend.env):
        return ""
    return (
        f"no warm-up of the MoE kernel: no config.json of {model.id} on this machine names its"
        " experts and top-k; steps may stall while the kernel is compiled"
    )


def _program(installed: Installed, model: str, extra_args: Sequence[str]) -> list[str]:
    """The module has one API server and passes over API_SERVERS; `vllm serve` heeds it."""
    heeds = any(word.partition("=")[0] == API_SERVERS for word in extra_args)
    if installed.has_module and not heeds:
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
    return added | recording(gate_logs, {**ours, **added})


def recording(gate_logs: Path, seen: Mapping[str, str]) -> dict[str, str]:
    """What a server's environment needs beyond `seen` to record into the folder `gate_logs`."""
    path = [str(RECORDER), *([seen["PYTHONPATH"]] if seen.get("PYTHONPATH") else [])]
    added = {GATE_LOGS: str(gate_logs), "PYTHONPATH": os.pathsep.join(path)}
    if "VLLM_PLUGINS" in seen:
        added["VLLM_PLUGINS"] = ",".join(filter(None, [seen["VLLM_PLUGINS"], PLUGIN]))
    return added
