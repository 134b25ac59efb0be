"""An engine in a process of its own, which a test follows through its journal."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from core.experiment import state
from core.experiment.state import Snapshot
from core.rundir import journal

PATIENCE_S = 60.0


def free_port() -> int:
    """A TCP port that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Watched:
    """A detached engine, and the state that its journal gives so far."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.journal = journal.Journal(run_dir)
        self.snapshot = Snapshot()
        self.pid = int((run_dir / ".lock").read_text())

    def until(self, fact: Callable[[Snapshot], object]) -> Snapshot:
        """The first snapshot for which `fact` is true."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            for event in self.journal.poll():
                self.snapshot = state.reduce(self.snapshot, event)
                if fact(self.snapshot):
                    return self.snapshot
            assert time.monotonic() < deadline, self.snapshot
            time.sleep(0.02)

    def phases(self) -> dict[str, str]:
        return {run_id: run.phase for run_id, run in self.snapshot.runs.items()}

    def servers(self, name: str) -> list[psutil.Process]:
        """Processes under the engine that run module `name`."""
        below = psutil.Process(self.pid).children(recursive=True)
        return [p for p in below if p.cmdline()[1:3] == ["-m", name]]

    def wait(self) -> None:
        """Wait until the engine has ended."""
        try:
            psutil.Process(self.pid).wait(PATIENCE_S)
        except psutil.NoSuchProcess:
            return


def edit(experiment: Path, **values: object) -> None:
    """Set keys of [experiment]."""
    kept = [
        x
        for x in experiment.read_text().splitlines(keepends=True)
        if x.split(" = ")[0] not in values
    ]
    lines = [f"{key} = {value}\n" for key, value in values.items()]
    experiment.write_text("".join([kept[0], *lines, *kept[1:]]))
