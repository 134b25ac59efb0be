"""A supervisor process between gatescope and a server: when gatescope goes, however it goes, the
server's tree goes.

Run as `python supervise.py FD COMMAND…`, by its path: the interpreter need not find our packages.
FD is the read end of a pipe whose write end only gatescope holds: end of file means that gatescope
is gone. The supervisor is a child subreaper (Linux), so that workers which make sessions of their
own, or lose their parent, still are its descendants.

It may be killed itself. So each start has a mark, a value in the environment that every process of
it inherits, and the supervisor has a watcher: a second process that waits for its end and then ends
all that still carries the mark. Where both are killed, the server's first process goes with its
supervisor (Linux), and the rest when the run directory is resumed: its marks begin with what
`RunDirectory.mark` says. Standard library and psutil only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator

import psutil

MARK = "GATESCOPE_START"
GRACE_S = 5.0  # from SIGTERM to SIGKILL
KILL_S = 8.0  # from SIGKILL until a process is given up: one that hangs in a driver cannot be ended
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def main(argv: list[str]) -> int:
    """Start the command; end its tree when the pipe closes or SIGTERM comes; return its exit
    code."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    pipe, command = int(argv[0]), argv[1:]
    watcher = _watched()
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    # The terminal's own: gatescope decides, and closes the pipe.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: _prctl(PR_SET_PDEATHSIG, 9),
    )
    while child.poll() is None:
        ready, _, _ = select.select([pipe, wake_read], [], [])
        if pipe in ready or signal.SIGTERM in os.read(wake_read, 64):
            break
    end(lambda: _tree(watcher))
    code = child.wait()
    return code if code >= 0 else 128 - code  # by a signal: as shells do


def _watched() -> int:
    """Have a watcher, which ends what carries our mark once we are gone; its pid."""
    ours_gone, ours = os.pipe()  # nobody else inherits the write end: it closes with us
    if pid := os.fork():
        os.close(ours_gone)
        return pid
    os.close(ours)
    os.setsid()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.read(ours_gone, 1)
    end(lambda: marked(os.environ[MARK], but=[os.getpid()]))
    os._exit(0)


def _tree(watcher: int) -> list[psutil.Process]:
    """Every living process of the server: our descendants, and what carries our mark; not the
    watcher."""
    below = [
        p for p in psutil.Process().children(recursive=True) if p.pid != watcher and _is_alive(p)
    ]
    return below + marked(os.environ[MARK], but=[os.getpid(), watcher, *(p.pid for p in below)])


def marked(mark: str, but: Collection[int] = ()) -> list[psutil.Process]:
    """Every living process whose mark begins with `mark`, but those pids. Other users' cannot be
    read, nor be ours."""
    return [process for process, own in _marks() if own.startswith(mark) and process.pid not in but]


def orphans() -> list[psutil.Process]:
    """Every living process of servers that have nobody left to end them: neither a supervisor nor
    its watcher."""
    all_marked = list(_marks())
    kept = {mark for process, mark in all_marked if _supervises(process)}
    return [process for process, mark in all_marked if mark not in kept]


def _marks() -> Iterator[tuple[psutil.Process, str]]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if (mark := process.environ().get(MARK)) and _is_alive(process):
                yield process, mark


def _supervises(process: psutil.Process) -> bool:
    try:
        return any(
            os.path.basename(word) == os.path.basename(__file__) for word in process.cmdline()
        )
    except psutil.Error:
        return False


def end(find: Callable[[], list[psutil.Process]], grace_s: float = GRACE_S) -> list[psutil.Process]:
    """SIGTERM to all that `find` finds, SIGKILL to what is left after `grace_s`; what could not be
    ended either."""
    asked: set[int] = set()
    deadline = time.monotonic() + grace_s
    while (left := find()) and time.monotonic() < deadline:
        _signal([p for p in left if p.pid not in asked], signal.SIGTERM)
        asked |= {p.pid for p in left}
        psutil.wait_procs(left, timeout=0.2)
    deadline = time.monotonic() + KILL_S
    while left and time.monotonic() < deadline:
        _signal(left, signal.SIGKILL)
        psutil.wait_procs(left, timeout=0.2)
        left = find()
    return left


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _signal(processes: list[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
