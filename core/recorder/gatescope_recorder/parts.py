"""The files of one rank's log: NAME.gatelog, NAME.part2.gatelog, …, each a log of its own with the
same header. Beside a part stands its .eplb.jsonl, where EPLB moves experts.

This module runs inside vLLM's workers too: standard library only.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path

from .limits import Limits

LOG, MAPS = ".gatelog", ".eplb.jsonl"


def part_path(first: Path, number: int, suffix: str = LOG) -> Path:
    """The file of part `number` (1, 2, …) of the log whose first file is `first`."""
    name = first.name.removesuffix(LOG)
    return first.with_name(f"{name}{'' if number == 1 else f'.part{number}'}{suffix}")


def part_files(first: Path, suffix: str = LOG) -> dict[int, Path]:
    """The files that exist of the log whose first file is, or was, `first`, by number."""
    name = re.escape(first.name.removesuffix(LOG))
    form = re.compile(rf"{name}(?:\.part(\d+))?{re.escape(suffix)}")
    found = ((form.fullmatch(path.name), path) for path in first.parent.glob(f"*{suffix}"))
    return dict(sorted((int(match[1] or 1), path) for match, path in found if match))


class Parts:
    """Writes blocks into part after part, and removes the oldest. OSError if the disk is full or
    the folder was removed; what a part then holds is whole."""

    def __init__(self, first: Path, head: bytes, limits: Limits) -> None:
        self.first, self.number = first, 1
        self._head, self._limits = head, limits
        self._open()

    @property
    def path(self) -> Path:
        """Of the part that is being written."""
        return part_path(self.first, self.number)

    @property
    def is_closed(self) -> bool:
        return self._file.closed

    def write(self, block: bytes) -> None:
        if self._is_full(len(block)) or self._is_elsewhere:
            self._go_on()
            self._remove_oldest()
        self._append(block)
        self._is_empty = False

    def follow(self) -> None:
        """Begin the next part where its folder is a symbolic link that was set to another one."""
        if not self.is_closed and self._is_elsewhere:
            self._go_on()

    def close(self) -> None:
        self._file.close()

    def _go_on(self) -> None:
        self._file.close()
        self.number += 1
        self._open()

    @property
    def _is_elsewhere(self) -> bool:
        """Whether the folder's name leads to another folder by now, without this part."""
        return not self.path.exists() and self.first.parent.is_dir()

    def _open(self) -> None:
        self._file = open(self.path, "xb", buffering=0)  # noqa: SIM115 - lives as long as the part
        self._opened_at, self._is_empty = time.monotonic(), True
        self._append(self._head)

    def _append(self, data: bytes) -> None:
        """All of it or, where the disk is full, nothing."""
        end, left = self._file.tell(), memoryview(data)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(end)
            raise

    def _is_full(self, more: int) -> bool:
        if os.fstat(self._file.fileno()).st_nlink == 0:
            return True  # someone removed it
        if self._is_empty:
            return False
        of = self._limits
        is_old = of.part_s and time.monotonic() - self._opened_at >= of.part_s
        return bool(is_old or (of.part_bytes and self._size(self.number) + more > of.part_bytes))

    def _remove_oldest(self) -> None:
        """Until what is left has room for the part that was begun."""
        if not self._limits.keep_bytes:
            return
        room = self._limits.keep_bytes - self._limits.part_bytes
        old = [number for number in part_files(self.first) if number < self.number]
        sizes = {number: self._size(number) for number in old}
        for number in old:
            if sum(sizes.values()) <= room:
                return
            del sizes[number]
            for suffix in (MAPS, LOG):
                part_path(self.first, number, suffix).unlink(missing_ok=True)

    def _size(self, number: int) -> int:
        paths = (part_path(self.first, number, suffix) for suffix in (LOG, MAPS))
        return sum(path.stat().st_size for path in paths if path.exists())
