"""The supervisor of one node of a server that spans several: it starts this node's part, and ends
it when another node's part has ended or is no longer heard of.

Run as `python node.py JSON` by its path, once on each node, by srun. The first node's listens; the
others connect, measure how far their clock is from the first's, and from then on both sides send a
line a second. A connection that closes, or is silent for SILENT_S, is a node that is gone; the
first says which, as the last line of the server's log. Below it `supervise.py` ends this node's
processes, also when we are killed. Standard library and psutil only.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

MARK = "GATESCOPE_START"
LOG = "GATESCOPE_SERVER_LOG"
NODE = "GATESCOPE_NODE"  # read by the recorder
NODES = "nodes.json"  # in the folder of gate logs: where each part of the server runs
SAID = "ERROR: gatescope: "
BEAT_S = 1.0
SILENT_S = 5.0
JOIN_S = 60.0  # for all nodes' supervisors to meet
STOPPED = "stopped"  # as it was asked to
PROBES = 8  # of the first node's clock
END_S = 14.0  # that supervise.py may take


@dataclass
class Peer:
    """Another node, as we hear of it."""

    rank: int
    host: str
    link: socket.socket
    heard: float
    ended: str = ""  # how its part ended, once it has said so, or is gone


class Node:
    """This node's part, and the links to the others: of the first node to all, of the others to
    the first."""

    def __init__(self, asked: dict[str, Any], rank: int) -> None:
        self.asked, self.rank = asked, rank
        self.host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        self.peers: list[Peer] = []
        self.offset_ns = 0

    def run(self) -> int:
        """Meet the others, start, and wait for the first end of any part; the exit code."""
        try:
            self._listen() if self.rank == 0 else self._join()
        except (OSError, ValueError) as error:
            self._say(f"{self._name(self.rank, self.host)} did not meet the others: {error}")
            return 1
        pipe, child = self._start()
        code = self._watch(child)
        if self.rank:
            ended = STOPPED if code is None else _ended(code, self._last_line())
            self._tell({"ended": ended})
        else:
            self._blame(code)
        os.close(pipe)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(END_S)
        return code if self.rank == 0 and code else 1

    # --- meeting ---

    def _listen(self) -> None:
        """Wait for every other node; answer its questions for our clock."""
        deadline, others = time.monotonic() + JOIN_S, self.asked["nodes"] - 1
        with socket.create_server((self.asked["head"], self.asked["port"])) as door:
            found = [self._about(self.rank, self.host, self.asked["head"], 0)]
            while len(self.peers) < others:
                door.settimeout(max(0.1, deadline - time.monotonic()))
                try:
                    link, address = door.accept()
                except TimeoutError:
                    here = {peer.rank for peer in self.peers} | {0}
                    missing = sorted(set(range(others + 1)) - here)
                    raise OSError(f"nothing was heard of node {missing} in {JOIN_S:g} s") from None
                with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                    about = _asked_for_time(link)
                    self.peers.append(Peer(about["rank"], about["host"], link, time.monotonic()))
                    found.append(self._about(about["rank"], about["host"], address[0], about["ns"]))
        if folder := self.asked["folder"]:
            known = json.dumps(sorted(found, key=lambda one: one["rank"]), indent=1)
            Path(folder, NODES).write_text(known + "\n")
        self._tell({"go": True})

    def _join(self) -> None:
        """Reach the first node, and compare clocks with it."""
        deadline = time.monotonic() + JOIN_S
        while True:
            try:
                link = socket.create_connection((self.asked["head"], self.asked["port"]), 5)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        link.settimeout(JOIN_S)
        probes = []
        for _ in range(PROBES):
            sent = time.time_ns()
            _send(link, {"token": os.environ[MARK]})
            theirs = _line(link)["ns"]
            back = time.time_ns()
            probes.append((back - sent, theirs - (sent + back) // 2))
        self.offset_ns = min(probes)[1]
        own = {"rank": self.rank, "host": self.host, "ns": self.offset_ns}
        _send(link, {"token": os.environ[MARK], **own})
        if not _line(link).get("go"):
            raise OSError("the first node did not start")
        self.peers.append(Peer(0, "", link, time.monotonic()))

    def _about(self, rank: int, host: str, address: str, offset_ns: int) -> dict[str, Any]:
        return {"rank": rank, "host": host, "address": address, "clock_offset_ns": offset_ns}

    # --- this node's part ---

    def _start(self) -> tuple[int, subprocess.Popen[bytes]]:
        """The part under a supervisor of its own; the pipe whose end ends it."""
        read_end, write_end = os.pipe()
        own = self.asked["head"] if self.rank == 0 else self.peers[0].link.getsockname()[0]
        where = {"host": self.host, "node": self.rank, "nodes": self.asked["nodes"]}
        where |= {"clock_offset_ns": self.offset_ns}
        net = {"VLLM_HOST_IP": own}
        if name := _interface(own):
            net |= {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name}
        mark = f"{os.environ[MARK]}-{self.rank}"
        env = {**net, **os.environ, NODE: json.dumps(where), MARK: mark}
        print(f"gatescope: rank {self.rank} on {self.host}, {own} ({name or '?'})", flush=True)
        supervisor = [sys.executable, "-P", str(Path(__file__).with_name("supervise.py"))]
        with contextlib.ExitStack() as stack:
            out = stack.enter_context(open(self._log(), "ab")) if self._log() else None
            child = subprocess.Popen(
                [*supervisor, str(read_end), *self.asked["commands"][self.rank]],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT if out else None,
                pass_fds=[read_end],
                env=env,
            )
        os.close(read_end)
        return write_end, child

    def _log(self) -> str:
        """What another node's part says is kept beside the server's log, which is the first's."""
        log = os.environ.get(LOG, "")
        return f"{log}.node{self.rank}" if self.rank and log else ""

    def _last_line(self) -> str:
        with contextlib.suppress(OSError):
            lines = Path(self._log()).read_text(errors="replace").split("\n")
            return next((line.strip() for line in reversed(lines) if line.strip()), "")
        return ""

    # --- watching ---

    def _watch(self, child: subprocess.Popen[bytes]) -> int | None:
        """Until our part ends: its exit code. Or another's, or we are asked to end: None."""
        stopped: list[int] = []
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, _: stopped.append(number))
        beaten = 0.0
        while not stopped:
            if (code := child.poll()) is not None:
                return code
            if time.monotonic() - beaten > BEAT_S:
                beaten = time.monotonic()
                self._tell({})
            self._hear(0.2)
            if any(peer.ended for peer in self.peers):
                return None
        return None

    def _tell(self, word: dict[str, Any]) -> None:
        for peer in self.peers:
            with contextlib.suppress(OSError):
                _send(peer.link, word)

    def _hear(self, wait_s: float) -> None:
        """What the others say now."""
        links = {peer.link: peer for peer in self.peers if not peer.ended}
        ready, _, _ = select.select(list(links), [], [], wait_s)
        for link in ready:
            peer = links[link]
            try:
                said = link.recv(65536)
            except OSError:
                said = b""
            peer.heard = time.monotonic()
            if not said:
                peer.ended = "it is gone: its processes were killed, or the node died"
            for line in said.splitlines():
                with contextlib.suppress(ValueError):
                    peer.ended = json.loads(line).get("ended", "") or peer.ended
        for peer in links.values():
            if not peer.ended and time.monotonic() - peer.heard > SILENT_S:
                peer.ended = f"nothing was heard of it for {SILENT_S:g} s"

    def _blame(self, code: int | None) -> None:
        """Say which node's end was the first cause. Our own part may end of another's loss before
        we hear of it."""
        deadline = time.monotonic() + (SILENT_S + BEAT_S if code else 0)
        while time.monotonic() < deadline and not any(peer.ended for peer in self.peers):
            self._hear(0.2)
        for peer in self.peers:
            is_echo = code is not None and "exited with code" in peer.ended
            if peer.ended not in ("", STOPPED) and not is_echo:
                self._say(f"{self._name(peer.rank, peer.host)}: {peer.ended}")

    def _name(self, rank: int, host: str) -> str:
        return f"node {host} (rank {rank} of {self.asked['nodes']})"

    def _say(self, text: str) -> None:
        print(SAID + text, flush=True)


def _asked_for_time(link: socket.socket) -> dict[str, Any]:
    """Answer with our clock until the other says what it is. ValueError if it does not know our
    mark, which only this start's processes do."""
    link.settimeout(5)
    while True:
        said = _line(link)
        if not secrets.compare_digest(str(said.get("token")), os.environ[MARK]):
            link.close()
            raise ValueError("not one of ours")
        if "rank" in said:
            return said
        _send(link, {"ns": time.time_ns()})


def _send(link: socket.socket, word: dict[str, Any]) -> None:
    link.sendall(json.dumps(word).encode() + b"\n")


def _line(link: socket.socket) -> dict[str, Any]:
    """One line, and nothing behind it: the other waits for an answer."""
    said = b""
    while not said.endswith(b"\n"):
        if not (part := link.recv(1)) or len(said) > 4096:
            raise OSError("the connection was closed")
        said += part
    found = json.loads(said)
    if not isinstance(found, dict):
        raise ValueError("no object")
    return found


def _ended(code: int, last: str) -> str:
    """supervise.py's exit code in words."""
    if code > 128 and code - 128 in signal.valid_signals():
        return f"its part of the server was killed by {signal.Signals(code - 128).name}"
    return f"its part of the server exited with code {code}" + (f": {last}" if last else "")


def _interface(address: str) -> str:
    """The name of the interface that has this address; empty where that is unknown."""
    found: Iterator[str] = (
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any(one.address == address for one in addresses)
    )
    return next(found, "")


if __name__ == "__main__":
    sys.exit(Node(json.loads(sys.argv[1]), int(os.environ.get("SLURM_NODEID", "0"))).run())
