"""A server that spans several nodes of a Slurm allocation: where its nodes meet, and the command
that starts `node.py` on each."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import psutil

from core import files
from core.backends import headless, node, ports
from core.errors import BackendError
from core.experiment.tables import Backend
from core.files import NOT_JSON
from core.recorder.gatescope_recorder.about import SUFFIX

UNENCRYPTED = "what its nodes tell each other is not encrypted: use a network that you trust"


def command(
    backend: Backend, program: Sequence[str], arguments: Sequence[str], gate_logs: Path | None
) -> list[str]:
    """What starts the server: `program` with `arguments` on this node, its further parts on the
    others. BackendError outside of an allocation of enough nodes."""
    check(backend, os.environ)
    head, _ = meeting(backend)
    shared = _shared(backend, head)
    further = [program[0], headless.__file__, "--model"]
    commands = []
    for rank in range(backend.nodes):
        words = list(program) if rank == 0 else [*further, program[-1]]
        commands.append([*words, *arguments, *shared, *_own(backend, rank)])
    asked = {
        "head": head,
        "port": ports.free(),
        "nodes": backend.nodes,
        "folder": str(gate_logs) if gate_logs else "",
        "commands": commands,
    }
    return [*_srun(backend, os.environ), sys.executable, "-P", node.__file__, json.dumps(asked)]


def check(backend: Backend, env: Mapping[str, str]) -> None:
    """BackendError where this is no allocation of as many nodes, or not its first one."""
    has = int(env.get("SLURM_JOB_NUM_NODES") or env.get("SLURM_NNODES") or 0)
    if has < backend.nodes:
        raise BackendError(
            f"[[backends]] {backend.name}, nodes: {backend.nodes} are asked for, and this is"
            f" {f'an allocation of {has}' if has else 'no Slurm allocation'}; start it with"
            f" --executor slurm, or in: salloc --nodes={backend.nodes}"
        )
    if env.get("SLURM_NODEID", "0") != "0":
        raise BackendError(
            f"[[backends]] {backend.name}, nodes: this is not the first node of the allocation;"
            " start gatescope there"
        )


class Met(msgspec.Struct, frozen=True, kw_only=True):
    """One node of a server, as its supervisors found it."""

    rank: int
    host: str
    address: str
    clock_offset_ns: int


def met(gate_logs: Path) -> list[Met]:
    """The nodes of the server that logs there; none for a server on one machine."""
    file = gate_logs / node.NODES
    return files.read(file, list[Met]) if file.is_file() else []


def ran(gate_logs: Path) -> dict[str, str]:
    """Where a server of several nodes runs, and which of them ran none of its ranks."""
    if not (known := met(gate_logs)):
        return {}
    seen = set()
    for file in gate_logs.glob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError, *NOT_JSON):
            seen.add(msgspec.json.decode(file.read_bytes(), type=dict[str, str]).get("node"))
    idle = [f"{one.host} (rank {one.rank})" for one in known if str(one.rank) not in seen]
    found = {
        "nodes": ", ".join(one.host for one in known),
        "rendezvous": f"{known[0].address}, not encrypted",
    }
    return found | ({"idle_nodes": ", ".join(idle)} if idle else {})


def meeting(backend: Backend) -> tuple[str, str]:
    """The address of this machine at which the nodes meet, and its interface. BackendError where
    there is none."""
    has = {
        name: next((one.address for one in known if one.family == socket.AF_INET), "")
        for name, known in psutil.net_if_addrs().items()
    }
    if backend.interface:
        if address := has.get(backend.interface):
            return address, backend.interface
        raise BackendError(
            f"[[backends]] {backend.name}, interface: {backend.interface!r} has no IPv4 address"
            f" here; there are {', '.join(f'{name} ({own})' for name, own in has.items() if own)}"
        )
    found = _routed()
    for name, known in psutil.net_if_addrs().items():
        if any(one.address == found for one in known):
            return found, name
    raise BackendError(
        f"[[backends]] {backend.name}, interface: no address here at which other nodes could be"
        " met; name an interface"
    )


def _routed() -> str:
    """Our address on the way to elsewhere; nothing is sent."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("203.0.113.1", 9))
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def _shared(backend: Backend, head: str) -> list[str]:
    """The arguments that all nodes have."""
    if backend.data_parallel > 1:
        local = backend.data_parallel // backend.nodes
        return [
            *("--data-parallel-size-local", str(local)),
            *("--data-parallel-address", head),
            *("--data-parallel-rpc-port", str(ports.free())),
        ]
    return [
        *("--nnodes", str(backend.nodes), "--master-addr", head),
        *("--master-port", str(ports.free()), "--distributed-executor-backend", "mp"),
    ]


def _own(backend: Backend, rank: int) -> list[str]:
    """The arguments of one node."""
    first = ["--headless"] if rank else []
    if backend.data_parallel > 1:
        # On the first node --data-parallel-start-rank would turn on hybrid load balancing.
        start = rank * (backend.data_parallel // backend.nodes)
        return [*first, "--data-parallel-start-rank", str(start)] if rank else []
    return [*first, "--node-rank", str(rank)]


def _srun(backend: Backend, env: Mapping[str, str]) -> list[str]:
    count = str(backend.nodes)
    words = ["srun", "--overlap", "--nodes", count, "--ntasks", count, "--ntasks-per-node=1"]
    words += ["--kill-on-bad-exit=1", "--export=ALL", "--unbuffered", "--mpi=none"]
    if cpus := env.get("SLURM_CPUS_PER_TASK"):  # srun no longer takes it from its job
        words.append(f"--cpus-per-task={cpus}")
    return words
