"""The folder `tasks/` of a sweep on a cluster: what was submitted, the logs of tasks, and the claim
that a task has of its cells, so that one that runs twice does its work once."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from core import files
from core.errors import FileError
from core.rundir import lock

FOLDER = "tasks"
NAME = "tasks.json"
CANCEL = "cancel"  # a file that asks the process that watches Ray's tasks to end them
CLAIM_S = 120.0  # as long as a shared file system may hold the lock of a node that died
POLL_S = 2.0


class Submission(Struct, frozen=True, kw_only=True):
    """One array of tasks: the cells of each. `name` is the job's, known before it is submitted."""

    name: str
    tasks: list[list[str]]

    def log(self, path: Path, index: int) -> Path:
        return folder(path) / f"{self.name}-{index}.log"


def folder(path: Path) -> Path:
    return path / FOLDER


def read(path: Path) -> list[Submission]:
    """All submissions of a sweep, oldest first."""
    file = folder(path) / NAME
    return files.read(file, list[Submission]) if file.is_file() else []


def add(path: Path, submission: Submission) -> None:
    folder(path).mkdir(mode=0o700, exist_ok=True)
    known = [*read(path), submission]
    files.write_whole(folder(path) / NAME, files.formatted(known))


@contextlib.contextmanager
def claimed(path: Path, slug: str, wait_s: float = CLAIM_S) -> Iterator[None]:
    """The cells of the task that begins with this one, kept from its other copies. FileError where
    one has them for longer than a dead node's lock lasts, or the file system has no locks."""
    own = folder(path) / slug
    own.mkdir(mode=0o700, parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            file, missing = lock.take(own)
            break
        except FileError:
            if time.monotonic() > deadline:
                raise FileError(
                    f"{own}: another task has these cells and still runs; they are left to it"
                ) from None
            time.sleep(POLL_S)
    with file:
        check_locks(missing)
        yield


def check_locks(missing: str) -> None:
    """FileError where a lock said that its file system has none."""
    if missing:
        raise FileError(
            f"{missing}; a sweep over several nodes needs locks: take --out on another file system"
        )
