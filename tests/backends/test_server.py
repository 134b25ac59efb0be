"""Server processes: waited for, ended with all that they started, and not forgotten when we die."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from core.backends import ports, supervise
from core.backends import server as servers
from core.backends.server import Server, ServerError
from core.errors import BackendError

# Starts a child in a session of its own, and writes both pids. With a second argument the child
# ignores SIGTERM, as a hung worker does.
TREE = """
import subprocess, sys, time
child = '''
import os, signal, sys, time
if sys.argv[2:]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1] + ".tmp", "w").write(f"{os.getppid()} {os.getpid()}")
os.rename(sys.argv[1] + ".tmp", sys.argv[1])
time.sleep(600)
'''
subprocess.Popen([sys.executable, "-c", child, *sys.argv[1:]], start_new_session=True)
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


SILENT = """
import socket, sys
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listening:
    print("listening", flush=True)
    while True:
        listening.accept()[0].close()
"""

SHARING = """
import socket, sys, time
with socket.socket() as listening:
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listening.bind(("127.0.0.1", int(sys.argv[1])))
    listening.listen()
    print("listening", flush=True)
    time.sleep(600)
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


def supervisors(mark: str) -> list[int]:
    """Pids of a server's supervisor and of its watcher, from a mark."""
    return [
        p.pid
        for p in supervise.marked(mark)
        if any(supervise.__file__ in word for word in p.cmdline())
    ]


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


def test_what_a_server_writes_just_before_it_is_ready_is_told_too(
    tmp_path: Path, port: int
) -> None:
    late = HEALTHY.replace(
        "self.send_response", "print('Capturing CUDA graphs: 50%', flush=True); self.send_response"
    )
    server = start(
        tmp_path, port, late.replace("Capturing CUDA graphs: 100%", "still loading"), str(port)
    )
    phases: list[str] = []
    try:
        asyncio.run(server.wait_ready(30.0, phases.append))
    finally:
        server.stop()
    assert phases == ["loading weights", "capturing graphs"]


def test_a_server_that_dies_says_why(tmp_path: Path, port: int) -> None:
    server = start(tmp_path, port, "print('step 1'); raise OSError('no weights here')")
    with pytest.raises(
        ServerError, match=r"tiny exited with code 1 after .* s: OSError: no weights here"
    ) as failure:
        asyncio.run(server.wait_ready(30.0))
    server.stop()
    assert failure.value.log_tail[0] == "step 1"


DYING = HEALTHY.replace(
    "print(", "print('ImportError: dealt with at the start', flush=True); print(", 1
).replace(
    "    def log_message",
    """        if self.path == "/die":
            print("ERROR 11-30 10:00:00 [core.py:1] ValueError: the cause", flush=True)
            print("EngineDeadError: EngineCore encountered an issue.", flush=True)
            import os; os._exit(int(sys.argv[2]))
    def log_message""",
)


@pytest.mark.parametrize("code", ["0", "1"])
def test_a_server_that_dies_once_it_is_ready_says_why(tmp_path: Path, port: int, code: str) -> None:
    """What its log held before it was ready did not keep it from being ready."""
    server = start(tmp_path, port, DYING, str(port), code)
    try:
        asyncio.run(server.wait_ready(30.0))
        assert server.complaint() == ""
        with contextlib.suppress(httpx.HTTPError):
            httpx.get(f"{server.base_url}/die", trust_env=False)
        assert not asyncio.run(server.is_up())
        assert server.complaint() == "ValueError: the cause"
        assert server.death().startswith(f"server tiny exited with code {code} after ")
        assert server.death().endswith(" s: ValueError: the cause")
    finally:
        server.stop()


def test_a_server_that_is_not_ready_in_time_says_how_far_it_came(tmp_path: Path, port: int) -> None:
    server = start(
        tmp_path,
        port,
        "print('Starting to load model m', flush=True); import time; time.sleep(600)",
    )
    try:
        with pytest.raises(ServerError, match=r"not ready after 1 s .* last seen loading weights"):
            asyncio.run(server.wait_ready(1.0))
    finally:
        server.stop()
    assert server.has_ended


def test_a_start_that_builds_kernels_says_so(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Told(Exception):
        pass

    def tell(phase: str) -> None:
        raise Told(phase)

    monkeypatch.setattr(servers, "BUILD_POLL_S", 0.1)
    compiler = str(shutil.copy(shutil.which("sleep") or "sleep", tmp_path / "nvcc"))
    server = start(
        tmp_path, port, "import subprocess, sys; subprocess.run([sys.argv[1], '600'])", compiler
    )
    try:
        with pytest.raises(Told, match="building CUDA kernels"):
            asyncio.run(server.wait_ready(60.0, tell))
    finally:
        server.stop()


def test_tritons_own_compiler_is_no_build(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(servers, "BUILD_POLL_S", 0.1)
    compiler = str(shutil.copy(shutil.which("sleep") or "sleep", tmp_path / "ptxas"))
    server = start(
        tmp_path, port, "import subprocess, sys; subprocess.run([sys.argv[1], '600'])", compiler
    )
    try:
        with pytest.raises(ServerError, match="not ready"):
            asyncio.run(server.wait_ready(1.0, told.append))
    finally:
        server.stop()
    assert told == []


def test_stop_ends_workers_in_sessions_of_their_own(tmp_path: Path, port: int) -> None:
    server = start(tmp_path, port, TREE, str(tmp_path / "pids"), "hangs")
    pids = pids_of(tmp_path / "pids")
    server.stop()
    assert [pid for pid in pids if is_alive(pid)] == []
    server.stop()  # a second call does nothing


OURS = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from core.backends import server as s
command = [sys.executable, "-c", sys.argv[2], sys.argv[3]]
s.start("t", command, port=1, api_key="", log=Path(sys.argv[4]), env={}, owner=sys.argv[5])
time.sleep(600)
"""


@pytest.mark.parametrize("killed", ["gatescope", "its supervisor too", "both and the watcher"])
def test_the_tree_goes_when_we_are_killed(tmp_path: Path, killed: str) -> None:
    """What then is left to nobody is ended when the run directory is resumed: see test_stopping."""
    root, mark = str(Path(__file__).parents[2]), f"{tmp_path}."
    ours = subprocess.Popen(
        [
            sys.executable,
            "-c",
            OURS,
            root,
            TREE,
            str(tmp_path / "pids"),
            str(tmp_path / "log"),
            mark,
        ]
    )
    server, worker = pids_of(tmp_path / "pids")
    supervisor, watcher = supervisors(mark)
    last = [supervisor, watcher][
        : ["gatescope", "its supervisor too", "both and the watcher"].index(killed)
    ]
    for pid in [ours.pid, *last]:
        os.kill(pid, signal.SIGSTOP)  # so that they die as one
    for pid in [ours.pid, *last]:
        os.kill(pid, signal.SIGKILL)
    ours.wait()
    assert wait_gone([server, supervisor, watcher]) == []
    if killed == "both and the watcher":
        assert [p.pid for p in supervise.marked(mark)] == [worker]
        supervise.end(lambda: supervise.marked(mark), grace_s=0.0)
    assert wait_gone([worker]) == []
    assert supervise.marked(mark) == []


def test_a_killed_supervisor_is_named_and_what_it_left_is_ended(tmp_path: Path, port: int) -> None:
    server = start(tmp_path, port, TREE, str(tmp_path / "pids"))
    pids = pids_of(tmp_path / "pids")
    for pid in supervisors(server.mark):
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(
        ServerError, match=r"^the supervisor of server tiny was killed by SIGKILL after"
    ):
        asyncio.run(server.wait_ready(30.0))
    assert server.stop() == []
    assert [pid for pid in pids if is_alive(pid)] == []


def test_a_process_that_writes_over_its_environment_keeps_its_mark(
    tmp_path: Path, port: int
) -> None:
    """setproctitle does, and vLLM calls it; SPT_NOENV stops it."""
    code = (
        "import os; assert os.environ['SPT_NOENV'] == '1';"
        " import time; print('checked', flush=True); time.sleep(9)"
    )
    server = start(tmp_path, port, code)
    try:
        deadline = time.monotonic() + 30
        while not server.log_tail():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert server.log_tail() == ["checked"]
    finally:
        server.stop()


class TestPort:
    def test_a_taken_port_names_its_owner(self, healthy: Server) -> None:
        asyncio.run(healthy.wait_ready(30.0))
        found = (
            r"\[\[backends\]\] b, port: {} is not free .* held by process \d+ \(.*python.*;"
            r" wait until it ends, choose another port, or set port = 0, which takes a free one"
        )
        with pytest.raises(BackendError, match=found.format(healthy.port)):
            ports.check("b", healthy.port)

    @pytest.mark.parametrize(
        "other", [HEALTHY, SILENT], ids=["a server in good health", "no HTTP server"]
    )
    def test_another_process_on_the_port_ends_the_start_at_once(
        self, tmp_path: Path, port: int, other: str
    ) -> None:
        foreign = subprocess.Popen([sys.executable, "-c", other, str(port)], stdout=subprocess.PIPE)
        try:
            assert foreign.stdout
            foreign.stdout.readline()
            server = start(tmp_path, port, "import time; time.sleep(600)")
            named = (
                rf"^server tiny: port {port} was taken by process {foreign.pid} \(.*python.*"
                " while it started; end"
            )
            with pytest.raises(ServerError, match=named):
                asyncio.run(server.wait_ready(600.0))
            server.stop()
        finally:
            foreign.kill()
            foreign.communicate()

    def test_a_listener_on_all_addresses_is_passed_over_where_ours_is_nearer(
        self, healthy: Server
    ) -> None:
        asyncio.run(healthy.wait_ready(30.0))
        assert ports.foreigner(healthy.port, [p.pid for p in supervise.marked(healthy.mark)]) == ""
        assert f"process {os.getpid()} (" not in ports.foreigner(healthy.port, [])

    def test_one_that_shares_the_port_with_ours_is_found(self, port: int) -> None:
        """SO_REUSEPORT, which vLLM sets: either may get a connection."""
        with socket.socket() as mine:
            mine.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            mine.bind(("127.0.0.1", port))
            mine.listen()
            other = subprocess.Popen(
                [sys.executable, "-c", SHARING, str(port)], stdout=subprocess.PIPE
            )
            assert other.stdout
            other.stdout.readline()
            try:
                assert ports.foreigner(port, [os.getpid()]).startswith(f"process {other.pid} (")
                assert ports.foreigner(port, [os.getpid(), other.pid]) == ""
            finally:
                other.kill()
                other.communicate()

    def test_a_server_that_finds_its_port_taken_says_by_whom(
        self, tmp_path: Path, healthy: Server
    ) -> None:
        asyncio.run(healthy.wait_ready(30.0))
        code = "raise OSError('[Errno 98] error while attempting to bind: address already in use')"
        late = servers.start(
            "late",
            [sys.executable, "-c", code],
            port=healthy.port,
            api_key="k",
            log=tmp_path / "late.log",
            env={},
        )
        late.process.wait(30)
        assert f"address already in use: port {healthy.port} is held by process" in late.death()
        late.stop()
