"""What `gatescope doctor` checks: what is installed, what prevents an experiment, and the fix."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from core import terminal
from core.backends import builtin, choice, forcing, modelfiles, nodes, nvml, ports, supervise, vllm
from core.backends.choice import Kind
from core.errors import GatescopeError
from core.experiment import config
from core.experiment.config import Config
from core.experiment.dose import NAME, Replay
from core.experiment.tables import Backend
from core.routing import recording as recorded

LEAST_COLUMNS, LEAST_ROWS = 80, 24
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tekken.json")


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. `fix` is empty if nothing is wrong."""

    subject: str
    found: str
    fix: str = ""


def examine(config_path: Path) -> Iterator[Finding]:
    """Every finding, in the order in which a run would need it."""
    yield _python()
    try:
        loaded = config.load(config_path)
    except GatescopeError as error:
        yield from (_problem("config", line) for line in str(error).splitlines())
        loaded = None
    if loaded is not None:
        names = ", ".join(backend.name for backend in loaded.backends)
        yield Finding(
            "config", f"{config_path}: backends {names}; {len(loaded.dataset_paths)} datasets"
        )
        yield from _engine(loaded)
        yield from (_port(backend) for backend in loaded.backends)
    yield from _orphans()
    yield _gpus(loaded)
    yield _terminal()
    yield _encoding()


def _problem(subject: str, error: GatescopeError | str) -> Finding:
    """Our errors say what is wrong, a semicolon, and what to do."""
    found, _, fix = str(error).partition("; ")
    return Finding(subject, found, fix or "correct it there")


def _python() -> Finding:
    try:
        ours = version("gatescope")
    except PackageNotFoundError:
        ours = "not installed, run from its folder"
    return Finding("Python", f"{platform.python_version()} ({sys.executable}), gatescope {ours}")


def _engine(loaded: Config) -> Iterator[Finding]:
    """The engine that a run would use, and what it needs."""
    wanted = loaded.experiment.engine
    kind = choice.decide(wanted, loaded.backends)
    if kind == "builtin":
        why = (
            "" if wanted == "builtin" else ': engine = "auto", and vLLM or GPUs for it are missing'
        )
        yield Finding("engine", f"{builtin.label(loaded.model)}{why}")
    else:
        yield Finding("engine", "vllm")
    if loaded.dose:
        yield _doses(loaded, kind)
    if wanted == "builtin":
        return
    yield from (_vllm(backend, needed=kind == "vllm") for backend in loaded.backends)
    yield from (_nodes(backend) for backend in loaded.backends if backend.nodes > 1)
    yield from _model(loaded, needed=kind == "vllm")


def _doses(loaded: Config, kind: Kind) -> Finding:
    """Whether the target imbalances of [dose] can be forced, and its gate logs replayed."""
    assert loaded.dose
    try:
        loaded, recording = recorded.of_config(loaded)
        assert loaded.dose
        replays = [Replay(name) for name in loaded.replays]
        choice.check_doses(kind, loaded.backends, loaded, [*loaded.dose.doses, *replays])
        if r := recording:
            choice.check_recording(kind, loaded, layers=r.layers, experts=r.experts, top_k=r.top_k)
    except GatescopeError as error:
        return _problem(NAME, error)
    found = [f"{len(replays)} recorded runs of {loaded.dose.replay}"] if replays else []
    if loaded.dose.doses:
        levels = ", ".join(f"{level:g}" for level in loaded.dose.levels)
        ranks = f"over {forcing.ranks(loaded.backends)} ranks"
        found = [f"{', '.join(loaded.dose.patterns)} {ranks}, at CVs of {levels}", *found]
    return Finding(NAME, f"{', '.join(found)}, besides natural routing")


def _vllm(backend: Backend, *, needed: bool) -> Finding:
    try:
        installed = vllm.check(backend)
    except GatescopeError as error:
        problem = _problem(backend.name, error)
        if needed:
            return problem
        return Finding(backend.name, f"{problem.found} (the built-in engine does not need it)")
    found = f"vLLM {installed.version} in {installed.python}"
    if installed.hook:
        return Finding(backend.name, f"{found}, router hook: {installed.hook}")
    fix = "the router of this vLLM cannot be recorded; use a version from 0.11 to 0.33"
    return Finding(backend.name, f"{found}, router hook: none found", fix if needed else "")


def _nodes(backend: Backend) -> Finding:
    """Where the nodes of a server would meet, were this its first one."""
    try:
        address, interface = nodes.meeting(backend)
    except GatescopeError as error:
        return _problem(backend.name, error)
    where = f"{backend.nodes} nodes, which here would meet at {address} ({interface})"
    return Finding(backend.name, f"{where}; {nodes.UNENCRYPTED}")


def _model(loaded: Config, *, needed: bool) -> Iterator[Finding]:
    """The model's tokenizer, and the shape that the warm-up of the MoE kernel needs."""
    model = loaded.model.id
    try:
        modelfiles.check(model)
    except GatescopeError as error:
        problem = _problem("model", error)
        yield problem if needed else Finding("model", problem.found)
        return
    env = loaded.backends[0].env
    yield _tokenizer(model, env, needed=needed)
    if shape := modelfiles.moe_shape(model, env):
        yield Finding("model", f"{shape[0]} experts a layer, top-{shape[1]}")
    elif modelfiles.is_here(model, env):
        unknown = "its config.json does not name its experts and top-k"
        yield Finding("model", f"{unknown}: the MoE kernel gets no warm-up of its own")


def _tokenizer(model: str, env: Mapping[str, str], *, needed: bool) -> Finding:
    folder = Path(model)
    if folder.is_dir():
        files = [folder / name for name in TOKENIZERS if (folder / name).is_file()]
        if files:
            return Finding("tokenizer", str(files[0]))
        fix = "put tokenizer.json or tokenizer.model there" if needed else ""
        return Finding("tokenizer", f"none in {folder}", fix)
    if modelfiles.cached(model, env).is_dir():
        return Finding("tokenizer", f"{model}, in {modelfiles.hub_cache(env)}")
    return Finding(
        "tokenizer",
        f"{model}, not on this machine yet: vLLM downloads it from the hub when it first starts",
    )


def _port(backend: Backend) -> Finding:
    try:
        ports.check(backend.name, backend.port)
    except GatescopeError as error:
        return _problem(f"port {backend.port}", error)
    found = f"free, for {backend.name}" if backend.port else f"a free one, for {backend.name}"
    return Finding(f"port {backend.port}", found)


def _orphans() -> Iterator[Finding]:
    if pids := " ".join(str(process.pid) for process in supervise.orphans()):
        fix = f"kill -9 {pids}; a --resume of their run directory ends them too"
        yield Finding(
            "leftovers",
            f"servers left running when their gatescope was killed: {pids}",
            fix,
        )


def _gpus(loaded: Config | None) -> Finding:
    shown = "; ".join(map(_gpu, nvml.seen())) or "none"
    if loaded is None or loaded.experiment.engine != "vllm" or _serves_on_cpu(loaded):
        return Finding("GPUs", shown)
    short = [b.ranks for b in loaded.backends if b.ranks > len(nvml.seen(b.env))]
    if not short:
        return Finding("GPUs", shown)
    most = max(short)
    fix = f"a backend needs {most}: lower tensor_parallel or data_parallel, or use more GPUs"
    return Finding("GPUs", shown, fix)


def _gpu(gpu: nvml.Device) -> str:
    if gpu.used is None or gpu.total is None:
        return f"{gpu.name}, free memory unknown"
    return f"{gpu.name}, {(gpu.total - gpu.used) / 1024:.0f} of {gpu.total / 1024:.0f} GiB free"


def _serves_on_cpu(loaded: Config) -> bool:
    """Whether every backend leaves moe_backend empty, as a CPU build needs: it has no kernels to
    choose from."""
    return all(not backend.moe_backend for backend in loaded.backends)


def _terminal() -> Finding:
    if not sys.stdout.isatty():
        return Finding("terminal", "not a terminal: use --batch here")
    columns, rows = terminal.size()
    term, colours = os.environ.get("TERM", ""), os.environ.get("COLORTERM", "")
    found = f"{term or 'TERM is not set'}, {columns} x {rows}, {colours or '256 colours or fewer'}"
    if term in ("", "dumb"):
        fix = "set TERM to your terminal's type, for example xterm-256color; or use --batch"
        return Finding("terminal", found, fix)
    if columns < LEAST_COLUMNS or rows < LEAST_ROWS:
        return Finding("terminal", found, f"make it at least {LEAST_COLUMNS} x {LEAST_ROWS}")
    return Finding("terminal", found)


def _encoding() -> Finding:
    encoding = (sys.stdout.encoding or "unknown").lower()
    if encoding.replace("-", "") == "utf8":
        return Finding("encoding", encoding)
    return Finding("encoding", encoding, "use a UTF-8 locale, for example: export LC_ALL=C.UTF-8")
