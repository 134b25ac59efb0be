"""`gatescope doctor`: what is here, what stands in the way of an experiment, and how each problem
is fixed."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from core.backends import builtin, choice, forcing, nvml, ports, supervise, vllm
from core.backends.choice import Kind
from core.errors import GatescopeError
from core.experiment import config
from core.experiment.config import Backend, Config
from core.experiment.dose import NAME

LEAST_COLUMNS, LEAST_ROWS = 80, 24


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `fix` is empty where nothing is wrong."""

    subject: str
    found: str
    fix: str = ""


def run(config_path: Path) -> int:
    """Print every finding; 0 where nothing is wrong, else 1."""
    findings = list(examine(config_path))
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        print(f"{'!' if finding.fix else '✓'} {finding.subject:<{width}}  {finding.found}")
        if finding.fix:
            print(f"  {'':<{width}}  fix: {finding.fix}")
    problems = sum(bool(finding.fix) for finding in findings)
    print(f"{problems} problem{'s' * (problems != 1)}" if problems else "nothing stands in the way")
    return 1 if problems else 0


def examine(config_path: Path) -> Iterator[Finding]:
    """Everything, in the order in which a run would need it."""
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
    """Which engine a run would take, and what it needs."""
    wanted = loaded.experiment.engine
    kind = choice.decide(wanted, loaded.backends)
    if kind == "builtin":
        why = (
            ""
            if wanted == "builtin"
            else ': engine = "auto", and vLLM or enough GPUs for it are not here'
        )
        yield Finding("engine", f"{builtin.ENGINE}{why}")
    else:
        yield Finding("engine", "vllm")
    if loaded.dose:
        yield _doses(loaded, kind)
    if wanted == "builtin":
        return
    yield from (_vllm(backend, needed=kind == "vllm") for backend in loaded.backends)
    yield _tokenizer(loaded.model.id, needed=kind == "vllm")


def _doses(loaded: Config, kind: Kind) -> Finding:
    """Whether what [dose] asks for can be forced."""
    assert loaded.dose
    try:
        choice.check_doses(kind, loaded.backends, loaded, loaded.dose.doses)
    except GatescopeError as error:
        return _problem(NAME, error)
    levels = ", ".join(f"{level:g}" for level in loaded.dose.levels)
    ranks = f"over {forcing.ranks(loaded.backends)} ranks"
    return Finding(
        NAME,
        f"{', '.join(loaded.dose.patterns)} {ranks}, at a CV of {levels}, beside natural routing",
    )


def _vllm(backend: Backend, *, needed: bool) -> Finding:
    try:
        installed = vllm.check(backend)
    except GatescopeError as error:
        problem = _problem(backend.name, error)
        return (
            problem
            if needed
            else Finding(backend.name, f"{problem.found} (not needed by the built-in engine)")
        )
    hook = f"router hook: {installed.hook}" if installed.hook else "router hook: none found"
    fix = (
        ""
        if installed.hook
        else "the router of this vLLM cannot be recorded; use one of 0.11 to 0.32"
    )
    return Finding(
        backend.name,
        f"vLLM {installed.version} in {installed.python}, {hook}",
        fix if needed else "",
    )


def _tokenizer(model: str, *, needed: bool) -> Finding:
    folder = Path(model)
    if folder.is_dir():
        files = [
            name
            for name in ("tokenizer.json", "tokenizer.model", "tekken.json")
            if (folder / name).is_file()
        ]
        if files:
            return Finding("tokenizer", f"{folder / files[0]}")
        return Finding(
            "tokenizer",
            f"none in {folder}",
            "put tokenizer.json or tokenizer.model there" if needed else "",
        )
    cache = Path(os.environ.get("HF_HOME", Path.home() / ".cache/huggingface")) / "hub"
    if (cache / f"models--{model.replace('/', '--')}").is_dir():
        return Finding("tokenizer", f"{model}, in {cache}")
    return Finding(
        "tokenizer",
        f"{model}, not on this machine yet: vLLM fetches it from the hub at its first start",
    )


def _port(backend: Backend) -> Finding:
    try:
        ports.check(backend.name, backend.port)
    except GatescopeError as error:
        return _problem(f"port {backend.port}", error)
    return Finding(f"port {backend.port}", f"free, for {backend.name}")


def _orphans() -> Iterator[Finding]:
    if pids := " ".join(str(process.pid) for process in supervise.orphans()):
        fix = f"kill -9 {pids}; a --resume of their run directory ends them too"
        yield Finding(
            "leftovers",
            f"servers whose gatescope was killed with all that would have ended them: {pids}",
            fix,
        )


def _gpus(loaded: Config | None) -> Finding:
    shown = "; ".join(map(_gpu, nvml.seen())) or "none"
    if loaded is None or loaded.experiment.engine != "vllm" or _serves_on_cpu(loaded):
        return Finding("GPUs", shown)
    short = [b.ranks for b in loaded.backends if b.ranks > len(nvml.seen(b.env))]
    if not short:
        return Finding("GPUs", shown)
    fix = (
        f"a backend spans {max(short)}: lower tensor_parallel or data_parallel,"
        " or take a machine with more GPUs"
    )
    return Finding("GPUs", shown, fix)


def _gpu(gpu: nvml.Device) -> str:
    if gpu.used is None or gpu.total is None:
        return f"{gpu.name}, free memory unknown"
    return f"{gpu.name}, {(gpu.total - gpu.used) / 1024:.0f} of {gpu.total / 1024:.0f} GiB free"


def _serves_on_cpu(loaded: Config) -> bool:
    """A CPU build has no kernels to choose from, so its backends leave moe_backend empty."""
    return all(not backend.moe_backend for backend in loaded.backends)


def _terminal() -> Finding:
    if not sys.stdout.isatty():
        return Finding("terminal", "not a terminal: use --batch here")
    columns, rows = shutil.get_terminal_size()
    term, colours = os.environ.get("TERM", ""), os.environ.get("COLORTERM", "")
    found = f"{term or 'TERM is not set'}, {columns} x {rows}, {colours or '256 colours or fewer'}"
    if term in ("", "dumb"):
        return Finding(
            "terminal",
            found,
            "set TERM to what your terminal is, for example xterm-256color; or use --batch",
        )
    if columns < LEAST_COLUMNS or rows < LEAST_ROWS:
        return Finding("terminal", found, f"make it at least {LEAST_COLUMNS} x {LEAST_ROWS}")
    return Finding("terminal", found)


def _encoding() -> Finding:
    encoding = (sys.stdout.encoding or "unknown").lower()
    if encoding.replace("-", "") == "utf8":
        return Finding("encoding", encoding)
    return Finding("encoding", encoding, "use a UTF-8 locale, for example: export LC_ALL=C.UTF-8")
