"""The run directory: made, written, read back. events.jsonl is the truth about what was done."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shlex
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np

from core.errors import FileError
from core.experiment import events
from core.experiment.config import check_name
from core.experiment.events import AnyEvent
from core.experiment.plan import Run
from core.files import formatted, or_nothing, write_whole
from core.load.record import RequestRecord
from core.recorder.gatescope_recorder.parts import LOG
from core.rundir import about, lock
from core.rundir.about import ServerNote
from core.rundir.result import Result

TAIL_BYTES = 1 << 16
SYNCED = (
    events.ExperimentStarted,
    events.RunFinished,
    events.RunFailed,
    events.RunCancelled,
    events.ExperimentFinished,
    events.ExperimentInterrupted,
)


def new_path(name: str, parent: Path = Path("runs")) -> Path:
    """`runs/<name>-<utc time>`, numbered where two start within a second."""
    base = f"{name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    tries = [base, *(f"{base}-{n}" for n in range(2, 100))]
    return next(parent / t for t in tries if not (parent / t).exists())


class RunDirectory:
    """One experiment's files, and the lock that keeps a second gatescope out while this one
    writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock, self.unlocked = lock.take(path)  # why there is no lock; empty if there is
        self._journal = open(path / "events.jsonl", "ab", buffering=0)  # noqa: SIM115
        self._drop_torn_line()

    @classmethod
    def create(cls, path: Path) -> RunDirectory:
        """A new directory, 0700. FileError where it is not empty or cannot be made."""
        check_name(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise FileError(
                    f"{path}: --out must be new or empty;"
                    f" to resume an interrupted run use: --resume {shlex.quote(str(path))}"
                )
            with contextlib.suppress(PermissionError, NotImplementedError):
                path.chmod(0o700)  # file systems without modes refuse it, to the owner too
            return cls(path)
        except OSError as error:
            raise FileError(f"{path}: cannot be written: {error.strerror}") from None

    @classmethod
    def reopen(cls, path: Path) -> RunDirectory:
        """An existing run directory, to resume. FileError where it is none."""
        if not (path / "run.json").is_file() or not (path / "events.jsonl").is_file():
            raise FileError(
                f"{path}: not a run directory: run.json and events.jsonl are expected in it"
            )
        try:
            return cls(path)
        except OSError as error:
            raise FileError(f"{path}: cannot be written: {error.strerror}") from None

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._journal.close()
        self._lock.close()

    @property
    def mark(self) -> str:
        """What the marks of this directory's servers begin with."""
        return lock.mark(self._lock)

    def append(self, event: AnyEvent) -> None:
        """Append one event; on disk before this returns where a run ended. OSError where that
        fails."""
        if not os.fstat(self._journal.fileno()).st_nlink:
            raise FileNotFoundError(
                errno.ENOENT, "the run directory has been deleted", str(self.path)
            )
        line = events.encode(event) + b"\n"
        if (written := self._journal.write(line)) != len(line):  # a disk that fills up takes a part
            os.ftruncate(self._journal.fileno(), os.fstat(self._journal.fileno()).st_size - written)
            raise OSError(errno.ENOSPC, "no room for the journal", str(self.path))
        if isinstance(event, SYNCED):
            os.fsync(self._journal.fileno())

    def write_json(self, name: str, value: Any) -> Path:
        """Write a JSON file under a temporary name, then rename it: it is whole or not there."""
        file = self.path / name
        write_whole(file, formatted(value))
        return file

    def note_server(self, backend: str, note: ServerNote) -> None:
        """Add to run.json what a server was asked to be, and what really ran."""
        known = about.read(self.path)
        servers = known.servers | {backend: note}
        self.write_json(about.NAME, msgspec.structs.replace(known, servers=servers))

    def write_result(self, run: Run, result: Result) -> str:
        """results_json/<label>.json of one run; its path inside the directory."""
        name = f"{run.backend}/results_json/{run.label}.json"
        self.write_json(name, result)
        return name

    def write_requests(self, run: Run, records: list[RequestRecord]) -> None:
        """requests/<label>.npz: per request its times (ns), counts and status; token stamps
        flattened. A count that nobody gave is -1."""
        file = self.path / run.backend / "requests" / f"{run.label}.npz"
        file.parent.mkdir(parents=True, exist_ok=True)
        names = (
            "t_due_ns",
            "t_start_ns",
            "t_sent_ns",
            "t_first_byte_ns",
            "t_done_ns",
            "output_tokens",
        )
        columns: dict[str, Any] = {
            n: np.array([getattr(r, n) for r in records], dtype=np.int64) for n in names
        }
        for name in ("prompt_tokens", "visible_tokens"):
            counts = [getattr(r, name) for r in records]
            columns[name] = np.array([-1 if n is None else n for n in counts], dtype=np.int64)
        columns["t_first_ns"] = np.array(
            [r.stamps_ns[0] if r.stamps_ns else 0 for r in records], dtype=np.int64
        )
        columns["ok"] = np.array([r.ok for r in records])
        columns["events"] = np.array([len(r.stamps_ns) for r in records], dtype=np.int64)
        columns["stamps_ns"] = np.array([s for r in records for s in r.stamps_ns], dtype=np.int64)
        columns["event_tokens"] = np.array(
            [n for r in records for n in r.event_tokens], dtype=np.int64
        )
        temporary = file.with_suffix(".tmp.npz")
        with or_nothing(temporary):
            np.savez(temporary, **columns)
            os.replace(temporary, file)

    def gate_logs(self, backend: str) -> Path:
        """The folder that the next server of this backend logs into: one a start, since a log is
        never reopened. One that stayed without a log is taken again."""
        folders = (
            self.path / backend / f"gate_logs{f'-start{n}' if n > 1 else ''}"
            for n in itertools.count(1)
        )
        return next(f for f in folders if not [*f.glob(f"*{LOG}"), *f.glob(f"*{LOG}.json")])

    def _drop_torn_line(self) -> None:
        """A last line without its newline was being written when the machine stopped; it never
        happened."""
        file = self.path / "events.jsonl"
        size = end = file.stat().st_size
        with open(file, "rb") as journal:
            while end > 0:
                start = max(0, end - TAIL_BYTES)
                journal.seek(start)
                if (found := journal.read(end - start).rfind(b"\n")) >= 0:
                    end = start + found + 1
                    break
                end = start
        if end < size:
            os.truncate(file, end)
