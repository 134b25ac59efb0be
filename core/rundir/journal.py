"""events.jsonl, the truth about what was done: read while it grows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from core.errors import FileError
from core.experiment import events
from core.experiment.events import AnyEvent

PART_BYTES = 1 << 23  # of a journal, read at once; a day's is over 100 MB


class Journal:
    """Reads a growing events.jsonl: each `poll()` returns the whole events that came since the
    last, or a part of them where they are many."""

    def __init__(self, run_dir: Path) -> None:
        self.file = run_dir / "events.jsonl"
        self._offset = self._lines = 0

    def poll(self) -> list[AnyEvent]:
        """New events, oldest first. FileError where the journal cannot be read, or a line is not an
        event."""
        try:
            with open(self.file, "rb") as file:
                file.seek(self._offset)
                data = file.read(PART_BYTES)
                whole, newline, _ = (
                    data + file.readline() if len(data) == PART_BYTES else data
                ).rpartition(b"\n")
        except OSError as error:
            raise FileError(f"{self.file}: cannot be read: {error.strerror}") from None
        if not newline:
            return []
        self._offset += len(whole) + 1
        return [self._decoded(line) for line in whole.split(b"\n")]

    def _decoded(self, line: bytes) -> AnyEvent:
        self._lines += 1
        try:
            return events.decode(line)
        except msgspec.DecodeError as error:
            raise FileError(f"{self.file}:{self._lines}: not an event: {error}") from None


def stream_events(run_dir: Path) -> Iterator[AnyEvent]:
    """Every whole event of a run directory, a part of them in memory. FileError as
    `Journal.poll`."""
    journal = Journal(run_dir)
    while part := journal.poll():
        yield from part


def read_events(run_dir: Path) -> list[AnyEvent]:
    """All of `stream_events`."""
    return list(stream_events(run_dir))
