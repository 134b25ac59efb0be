"""Which rules say that the figures so far are not what they are called. Read off the UI thread."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from core.errors import FileError
from core.experiment.state import RunState, Snapshot
from tui.model.client import FINDINGS, judged

if TYPE_CHECKING:
    from core.validity.problem import Problem

AT_ONCE = 8  # results read in one look, so that a long run directory does not hold up the screen


class Verdicts:
    """By the findings of the whole run directory, once it has some; until then each result is
    judged by itself, when its run has ended."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._runs: dict[str, tuple[float, list[Problem]]] = {}  # when it ended, and what is wrong
        self.words = ""

    def read(self, snapshot: Snapshot) -> None:
        """Judge what has ended since the last read."""
        done = {i: r for i, r in snapshot.runs.items() if r.result}
        problems = self._of_all(done.values())
        if problems is None:
            new = [r for i, r in done.items() if r.ended_at != self._runs.get(i, (0.0,))[0]]
            self._runs |= {r.run.id: (r.ended_at, self._of_one(r)) for r in new[:AT_ONCE]}
            problems = [p for i in done if i in self._runs for p in self._runs[i][1]]
        self.words = _in_words(problems, {r.run.backend for r in done.values()})

    def _of_all(self, done: Iterable[RunState]) -> list[Problem] | None:
        """None where no findings are, or some that are older than a result."""
        try:
            at = (self.run_dir / FINDINGS).stat()
            whole = judged((self.run_dir / FINDINGS).resolve(), at.st_mtime_ns)
        except (OSError, msgspec.DecodeError):
            return None
        is_newest = at.st_mtime >= max((run.ended_at for run in done), default=0.0)
        return whole.problems if whole and is_newest else None

    def _of_one(self, run: RunState) -> list[Problem]:
        from core.rundir import result
        from core.validity import verdict

        try:
            found = result.read(self.run_dir / run.result)
        except (OSError, FileError):
            return []
        return [p for p in verdict.of_result(run.run.id, found).problems if p.severity == "invalid"]


def _in_words(problems: list[Problem], backends: Iterable[str]) -> str:
    """`INVALID: answer lengths (all2all/001 and 2 more)`; empty if nothing is."""
    if not problems:
        return ""
    from core.validity.problem import Validity, joined

    found = Validity(problems=joined(problems), checked=[], unchecked=[]).invalid(sorted(backends))
    return f"INVALID: {'; '.join(found.values())}" if found else ""
