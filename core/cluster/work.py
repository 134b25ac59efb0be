"""One task: some cells of a sweep, run by a gatescope of its own on the node that the cluster
chose."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from core.rundir import sweep
from core.rundir.result import done_runs

PR_SET_PDEATHSIG = 1
POLL_S = 0.3
END_S = 60.0  # for the journal to be written and the servers to end
IDLE_LIVES = 3
ENDING = {  # words of squeue
    *("completing", "completed", "cancelled", "failed", "timeout", "deadline"),
    *("preempted", "node_fail", "boot_fail", "out_of_memory"),
}


@dataclass(frozen=True, slots=True)
class TaskState:
    """What the cluster says of one task: a word of its own, the node, and why it waits."""

    cells: tuple[str, ...]
    state: str
    node: str = ""
    reason: str = ""

    @property
    def is_ending(self) -> bool:
        """Whether it was cancelled or has ended, though Slurm still lists it, or is on its way to
        be queued again."""
        return self.state in ENDING


@dataclass
class Work:
    """The cells of one task. `container`: words that the command is put behind. `idle`: lives that
    ended without a new result. `log`: a file for what gatescope says; else it goes where ours
    does."""

    path: str
    cells: tuple[str, ...]
    container: tuple[str, ...] = ()
    idle: int = 0
    log: str = ""
    _pid: int = field(default=0, init=False)
    _done: int = field(default=0, init=False)

    def __call__(self) -> int:
        """Run the cells; gatescope's exit code."""
        self._done = self.done
        words = [*self.container, *_gatescope(self.container), "sweep", "run", self.path]
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(open(self.log, "ab")) if self.log else None
            child = subprocess.Popen(
                [*words, *self.cells],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_end_with_parent,
            )
        self._pid = child.pid
        try:
            while child.poll() is None:
                time.sleep(POLL_S)
        finally:
            self.end()
        return child.returncode

    @property
    def done(self) -> int:
        """Results that there are by now."""
        path = Path(self.path)
        folders = [path / sweep.CELLS / slug for slug in self.cells]
        return sum(len(done_runs(own)) for own in folders if (own / "events.jsonl").is_file())

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End gatescope, which ends its servers. It waits without reaping: this may run in a
        signal's handler, inside `Popen.poll`."""
        deadline = time.monotonic() + END_S
        asked = False
        while not _has_ended(self._pid):
            if not asked:
                os.kill(self._pid, number)
                asked = True
            if time.monotonic() > deadline:
                os.kill(self._pid, signal.SIGKILL)
            time.sleep(0.05)

    def next_life(self) -> Work | None:
        """After a signal that the time is up: the journal is written and the servers have ended.
        The task as it is to be queued again; None once it has got nowhere several times."""
        self.end(signal.SIGUSR1)
        idle = 0 if self.done > self._done else self.idle + 1
        if idle >= IDLE_LIVES:
            return None
        return Work(self.path, self.cells, self.container, idle, self.log)

    def checkpoint(self) -> object:
        """submitit's hook: what is queued again, None for nothing."""
        from submitit.helpers import DelayedSubmission

        fresh = self.next_life()
        return None if fresh is None else DelayedSubmission(fresh)


def _gatescope(container: tuple[str, ...]) -> list[str]:
    """The command: in a container, the one that it has."""
    return ["gatescope"] if container else [sys.executable, "-P", "-m", "core.cli"]


def _has_ended(pid: int) -> bool:
    if not pid:
        return True
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
    except ChildProcessError:
        return True


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
