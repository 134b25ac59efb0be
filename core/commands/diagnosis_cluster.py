"""What `gatescope doctor --executor slurm` checks: whether a task would be taken, and what it would
find on a node."""

from __future__ import annotations

import shlex
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from core.backends import nvml, vllm
from core.cluster import slurm
from core.commands.diagnosis import Finding
from core.errors import FileError, GatescopeError
from core.experiment import config
from core.experiment.cluster import Cluster
from core.rundir import lock

WAIT_S = 120  # for a node to come free
RUN_S = 180.0


class OnNode(msgspec.Struct, frozen=True, kw_only=True):
    """What a node says. `locks`: whether it saw the lock that we hold."""

    node: str
    locks: bool
    sockets: str = ""  # why there are none
    gpus: int = 0
    backends: dict[str, str] = {}  # a vLLM of each, or what is wrong with it
    problems: list[str] = []


def examine(config_path: Path, out: Path) -> Iterator[Finding]:
    """Every finding; the last ones from a node, if one comes free within WAIT_S."""
    try:
        loaded = config.load(config_path)
    except GatescopeError:
        return  # doctor has said what is wrong with it
    cluster = loaded.cluster or Cluster()
    try:
        slurm.check()
    except GatescopeError as error:
        yield _problem("Slurm", error)
        return
    try:
        yield Finding("Slurm", f"takes a task: {slurm.would_take(cluster)}")
    except GatescopeError as error:
        yield _problem("Slurm", error)
        return
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=out) as folder:
        yield from _shared(Path(folder), config_path, cluster)


def _shared(folder: Path, config_path: Path, cluster: Cluster) -> Iterator[Finding]:
    file, missing = lock.take(folder)
    with file:
        if missing:
            yield Finding("locks", missing, "take a folder on another file system, with --out")
            return
        words = [sys.executable, "-P", "-m", "core.cli"]
        command = [*words, "doctor", "--config", str(config_path.absolute())]
        try:
            said = slurm.on_node(
                cluster, [*command, "--on-node", str(folder.absolute())], WAIT_S, RUN_S
            )
            seen = msgspec.json.decode(said.strip().splitlines()[-1], type=OnNode)
        except (GatescopeError, msgspec.DecodeError, IndexError) as error:
            fix = f"run it there yourself: srun {shlex.join(command)}"
            yield Finding("node", f"nothing was learned from a node: {error}", fix)
            return
    yield Finding("node", f"{seen.node} sees {folder.parent}, {seen.gpus} GPUs")
    yield _locks(seen)
    yield Finding(
        "sockets",
        seen.sockets or "a run directory there can be sent commands on its node",
        "without them runs there take no commands; take another file system" * bool(seen.sockets),
    )
    for name, found in seen.backends.items():
        yield Finding(name, f"on {seen.node}: {found}")
    for problem in seen.problems:
        yield _problem(f"on {seen.node}", problem)


def _locks(seen: OnNode) -> Finding:
    if seen.locks:
        return Finding("locks", f"one that is held here is seen on {seen.node}")
    return Finding(
        "locks",
        f"one that is held here is not seen on {seen.node}: a task that runs twice would do its"
        " work twice",
        "mount the file system with locks (Lustre: -o flock), or take another with --out",
    )


def on_node(config_path: Path, folder: Path) -> OnNode:
    """What this machine finds. FileError where it does not see the folder."""
    if not (folder / lock.NAME).is_file():
        raise FileError(f"{folder}: this node does not see it; take a folder that all nodes share")
    loaded = config.load(config_path)
    backends, problems = {}, []
    for backend in loaded.backends if loaded.experiment.engine != "builtin" else ():
        try:
            backends[backend.name] = f"vLLM {vllm.check(backend).version}"
        except GatescopeError as error:
            problems.append(str(error))
    return OnNode(
        node=socket.gethostname(),
        locks=_is_locked(folder),
        sockets=_why_no_sockets(folder),
        gpus=len(nvml.seen()),
        backends=backends,
        problems=problems,
    )


def _is_locked(folder: Path) -> bool:
    try:
        file, _ = lock.take(folder)
    except FileError:
        return True
    file.close()
    return False


def _why_no_sockets(folder: Path) -> str:
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.bind(str(folder / "s"))
    except OSError as error:
        return f"none in this folder: {error.strerror or error}"
    return ""


def _problem(subject: str, error: GatescopeError | str) -> Finding:
    found, _, fix = str(error).partition("; ")
    return Finding(subject, found, fix or "correct it in [cluster], or ask your site")
