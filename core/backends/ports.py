"""TCP ports of this machine: whether one is free, and who listens there."""

from __future__ import annotations

import socket
from collections.abc import Collection

import psutil

from core.errors import BackendError

LOOPBACK = ("127.0.0.1", "::ffff:127.0.0.1")
ANY = ("0.0.0.0", "::")
COMMAND_CHARACTERS = 80


def free() -> int:
    """A port of 127.0.0.1 that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def check(name: str, port: int) -> None:
    """BackendError if something listens on 127.0.0.1:port; it names the owner where that is
    known."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            held = f", held by {owner}" if (owner := foreigner(port, ())) else ""
            raise BackendError(
                f"[[backends]] {name}, port: {port} is not free ({error.strerror}){held};"
                " wait until it ends, choose another port, or set port = 0, which takes a free one"
                " at each start"
            ) from None


def foreigner(port: int, ours: Collection[int]) -> str:
    """Who answers at 127.0.0.1:port that is not one of the processes `ours`; empty if nobody does,
    or it is unknown.

    A listener on the address itself is preferred by the kernel to one on all addresses; of several
    on the same address (SO_REUSEPORT) each gets a share of the connections, so none may be foreign.
    """
    try:
        found = [
            c
            for c in psutil.net_connections("tcp")
            if c.status == psutil.CONN_LISTEN and c.laddr.port == port
        ]
    except (psutil.Error, OSError):  # macOS lists connections for root only
        return ""
    nearest = [c for c in found if c.laddr.ip in LOOPBACK] or [
        c for c in found if c.laddr.ip in ANY
    ]
    return next((_described(c.pid) for c in nearest if c.pid not in ours), "")


def _described(pid: int | None) -> str:
    if pid is None:
        return "a process of another user"
    try:
        process = psutil.Process(pid)
        command = " ".join(" ".join(process.cmdline()).split()) or process.name()
    except psutil.Error:
        return f"process {pid}"
    shown = "".join(c for c in command[:COMMAND_CHARACTERS] if c.isprintable())
    rest = "…" if len(command) > COMMAND_CHARACTERS else ""
    return f"process {pid} ({shown}{rest})"
