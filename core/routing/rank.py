"""One rank's gate log, read while it grows: a row of files, of which the oldest may be gone."""

from __future__ import annotations

import math
from pathlib import Path

from core.recorder.gatescope_recorder.gatelog import Header
from core.recorder.gatescope_recorder.parts import part_files, part_path
from core.routing.gatelog import Follower, GateLog


class RankLog:
    """Follows the log whose first file is, or was, `first`, from file to file."""

    def __init__(self, first: Path) -> None:
        self.first = first
        self.number = min(part_files(first), default=1)  # of the part that is read
        self.is_cut = self.number > 1  # its beginning was removed
        self._read_before, self._lost_before = 0, ""
        self._follower = Follower(part_path(first, self.number))

    @property
    def header(self) -> Header | None:
        return self._follower.header

    @property
    def place(self) -> int:
        """Bytes read so far."""
        return self._read_before + self._follower.place

    @property
    def lost(self) -> str:
        """What cannot be read at the ends of the files."""
        return "; ".join(filter(None, (self._lost_before, self._follower.lost)))

    def read(self, enough: float = math.inf) -> GateLog:
        """The new whole blocks of one file; empty once all are read. GateLogError as
        `Follower.read`."""
        while True:
            later = [number for number in part_files(self.first) if number > self.number]
            try:
                found = self._follower.read(enough)
                if len(found.tokens) or not later:
                    return found
            except FileNotFoundError:
                if not later:
                    raise
            self._go_on(later[0])

    def _go_on(self, number: int) -> None:
        self._read_before, self._lost_before = self.place, self.lost
        self.number = number
        self._follower = Follower(part_path(self.first, number))
