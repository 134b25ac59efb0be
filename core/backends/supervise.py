"""A supervisor process between gatescope and a server: when gatescope goes, however it goes, the server's tree goes.

Run as `python supervise.py FD COMMAND…`, by its path: the interpreter need not find our packages. FD is the read end of
a pipe whose write end only gatescope holds: end of file means that gatescope is gone. The supervisor is a child
subreaper (Linux), so that workers which make sessions of their own, or lose their parent, still are its descendants.
Standard library and psutil only.
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

import psutil

GRACE_S = 5.0
PR_SET_CHILD_SUBREAPER = 36


def main(argv: list[str]) -> int:
    """Start the command; end its tree when the pipe closes or SIGTERM comes; return its exit code."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    pipe, command = int(argv[0]), argv[1:]
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    for number in (signal.SIGINT, signal.SIGHUP):  # the terminal's; gatescope decides, and closes the pipe
        signal.signal(number, signal.SIG_IGN)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    while child.poll() is None:
        ready, _, _ = select.select([pipe, wake_read], [], [])
        if pipe in ready or signal.SIGTERM in os.read(wake_read, 64):
            break
    end_tree()
    code = child.wait()
    return code if code >= 0 else 128 - code  # by a signal: as shells say it


def end_tree(grace_s: float = GRACE_S) -> None:
    """SIGTERM to every descendant, SIGKILL to what is left after `grace_s`, until none is."""
    _signal(_descendants(), signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while (left := _descendants()) and time.monotonic() < deadline:
        psutil.wait_procs(left, timeout=0.05)
    while left := _descendants():
        _signal(left, signal.SIGKILL)
        psutil.wait_procs(left, timeout=0.2)


def _descendants() -> list[psutil.Process]:
    """Every living descendant."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _signal(processes: list[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
