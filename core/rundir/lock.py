"""The lock that keeps a second gatescope out of a run directory."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import TextIO

from core.errors import FileError

NAME = ".lock"
# What flock says where the file system has no locks: Lustre and FUSE without them, NFS without
# lockd, SMB.
TAKEN = (errno.EWOULDBLOCK, errno.EACCES)
UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def take(run_dir: Path) -> tuple[TextIO, str]:
    """The open lock file, which holds our pid until it is closed, and why it is not locked (empty
    if it is). FileError where another gatescope has the directory.

    Without locks the pid that the file holds is all there is to go by, and it means something on
    its own machine only.
    """
    file = open(run_dir / NAME, "a+")  # noqa: SIM115 - held while the directory is written
    missing = ""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = _owner(file)
        if error.errno not in (*TAKEN, *UNSUPPORTED):
            raise
        if error.errno in TAKEN or _is_gatescope(owner):
            file.close()
            raise FileError(
                f"{run_dir}: in use by another gatescope, process {owner or 'unknown'}; wait for it"
                " or stop it"
            ) from None
        missing = (
            f"{run_dir}: its file system has no locks ({error.strerror}), so nothing keeps a second"
            " gatescope out of it; do not resume it, here or on another machine, while it runs"
        )
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file, missing


def mark(file: TextIO) -> str:
    """What tells the servers of whoever holds this lock from all other processes (see
    core.backends.supervise): the lock file's device and inode, which stay as they are where the
    directory is renamed, and are others' where it is copied."""
    found = os.fstat(file.fileno())
    return f"{found.st_dev:x}-{found.st_ino:x}."


def is_held(run_dir: Path) -> bool:
    """Whether the gatescope that took it last still runs, on this machine."""
    try:
        with open(run_dir / NAME) as file:
            return _is_gatescope(_owner(file))
    except OSError:
        return False


def _owner(file: TextIO) -> str:
    file.seek(0)
    return file.read().strip()


def _is_gatescope(pid: str) -> bool:
    """Whether that process of this machine is a gatescope that runs."""
    import psutil

    try:
        words = psutil.Process(int(pid)).cmdline()
    except (ValueError, OverflowError, psutil.Error):
        return False
    return any("gatescope" in word or "core.cli" in word for word in words)
