"""How much is recorded of a server that runs for long: one step in so many, in files of bounded
size, of which the oldest are removed.

This module runs inside vLLM's workers too: standard library only.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

VARIABLE = "GATESCOPE_RECORD"
QUARTERS = 4  # of a rank's room: that much of its history is lost at most when a file is removed


@dataclass(frozen=True, slots=True)
class Limits:
    """0: no limit. A rank's log is a row of files (parts), each with whole blocks."""

    part_bytes: int = 0  # a part ends before it is larger,
    part_s: float = 0.0  # or when it is so old
    keep_bytes: int = 0  # that the parts of all ranks may take on disk
    sample: int = 1  # one step in so many is recorded

    def of_rank(self, ranks: int) -> Limits:
        """The limits of one of `ranks` writers."""
        if not self.keep_bytes:
            return self
        room = self.keep_bytes // ranks
        part = min(self.part_bytes or room, max(1, room // QUARTERS))
        return Limits(part, self.part_s, room, self.sample)

    def encode(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> Limits:
        """ValueError or TypeError if it was not encoded by us."""
        return cls(**json.loads(text))
