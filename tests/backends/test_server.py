"""Server processes: waited for, ended with all that they started, and not forgotten when we die."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from core.backends import gpus
from core.backends import server as servers
from core.backends.server import Server, ServerError
from core.config import ConfigError

# Starts a child in a session of its own that ignores SIGTERM, as a hung worker does, and writes both pids.
TREE = """
import subprocess, sys, time
child = '''
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1] + ".tmp", "w").write(f"{os.getppid()} {os.getpid()}")
os.rename(sys.argv[1] + ".tmp", sys.argv[1])
time.sleep(600)
'''
subprocess.Popen([sys.executable, "-c", child, sys.argv[1]], start_new_session=True)
time.sleep(600)
"""

HEALTHY = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *args): pass
print("Starting to load model tiny...", flush=True)
print("Capturing CUDA graphs: 100%", flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(folder: Path, port: int, code: str, *arguments: str) -> Server:
    command = [sys.executable, "-c", code, *arguments]
    return servers.start("tiny", command, port=port, api_key="k", log=folder / "server.log", env={})


@pytest.fixture
def healthy(tmp_path: Path, port: int) -> Iterator[Server]:
    server = start(tmp_path, port, HEALTHY, str(port))
    yield server
    server.stop()


def pids_of(file: Path) -> list[int]:
    deadline = time.monotonic() + 30
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return [int(word) for word in file.read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_gone(pids: list[int]) -> list[int]:
    deadline = time.monotonic() + 15
    while (left := [pid for pid in pids if is_alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def test_ready_after_its_phases(healthy: Server) -> None:
    phases: list[str] = []
    assert asyncio.run(healthy.wait_ready(30.0, phases.append)) > 0
    assert phases == ["loading weights", "capturing graphs"]


def test_a_server_that_dies_says_why(tmp_path: Path, port: int) -> None:
    server = start(tmp_path, port, "print('step 1'); raise OSError('no weights here')")
    with pytest.raises(ServerError, match=r"tiny exited with code 1 after .* s: OSError: no weights here") as failure:
        asyncio.run(server.wait_ready(30.0))
    server.stop()
    assert failure.value.log_tail[0] == "step 1"


def test_a_server_that_is_not_ready_in_time_says_how_far_it_came(tmp_path: Path, port: int) -> None:
    server = start(tmp_path, port, "print('Starting to load model m', flush=True); import time; time.sleep(600)")
    try:
        with pytest.raises(ServerError, match=r"not ready after 1 s .* last seen loading weights"):
            asyncio.run(server.wait_ready(1.0))
    finally:
        server.stop()
    assert server.has_ended


def test_stop_ends_workers_in_sessions_of_their_own(tmp_path: Path, port: int) -> None:
    server = start(tmp_path, port, TREE, str(tmp_path / "pids"))
    pids = pids_of(tmp_path / "pids")
    server.stop()
    assert [pid for pid in pids if is_alive(pid)] == []
    server.stop()  # a second call does nothing


def test_the_tree_goes_when_we_are_killed(tmp_path: Path, port: int) -> None:
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); from pathlib import Path;"
        " from core.backends import server as s;"
        " s.start('t', [sys.executable, '-c', sys.argv[2], sys.argv[3]], port=1, api_key='', log=Path(sys.argv[4]),"
        " env={}); time.sleep(600)"
    )
    root = str(Path(__file__).parents[2])
    ours = subprocess.Popen([sys.executable, "-c", code, root, TREE, str(tmp_path / "pids"), str(tmp_path / "log")])
    pids = pids_of(tmp_path / "pids")
    os.kill(ours.pid, signal.SIGKILL)
    ours.wait()
    assert wait_gone(pids) == []


def test_a_taken_port_names_its_owner(healthy: Server) -> None:
    asyncio.run(healthy.wait_ready(30.0))
    with pytest.raises(ConfigError, match=rf"\[\[backends\]\] b, port: {healthy.port} is not free .* held by process"):
        servers.check_port("b", healthy.port)


class TestGpuMemory:
    @pytest.fixture
    def used(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A machine of one GPU, whose used MiB are in this file."""
        file = tmp_path / "used"
        script = tmp_path / "nvidia-smi"
        script.write_text(f'#!/bin/sh\necho "NVIDIA H200, $(cat {file}), 143771"\n')
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        file.write_text("500")
        return file

    def test_is_read_in_mib(self, used: Path) -> None:
        assert gpus.seen() == [gpus.Gpu("NVIDIA H200", 500, 143771)]

    def test_is_waited_for_until_it_is_free_again(self, used: Path) -> None:
        before = gpus.seen()
        used.write_text("90000")
        assert not gpus.wait_free(before, timeout_s=0.0)
        used.write_text("700")
        assert gpus.wait_free(before, timeout_s=0.0)

    def test_of_a_machine_without_gpus_is_not_waited_for(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        assert gpus.seen() == []
        assert gpus.wait_free([])
