"""A sweep as its screen shows it: one that is planned, or the folder of one. No widgets."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Literal

from msgspec import Struct, structs

from core.analysis import cells, limits, matrix
from core.analysis.matrix import Grid
from core.experiment import control
from core.experiment.control import ControlError
from core.experiment.invocation import Invocation
from core.rundir import sweep
from core.rundir.sweep import SweepFile

Stage = Literal["not started", "running", "stopped", "done"]
LOOK_S = 0.2


class SweepView(Struct, frozen=True):
    head: str = ""
    title: str = ""
    grid: Grid = Grid([], [], {})
    notes: tuple[str, ...] = ()
    stage: Stage = "not started"


class SweepSession:
    """The folder at `path`; as long as nothing is started, what `invocation` has `planned`. Every
    method may block: call them from a thread."""

    def __init__(
        self,
        path: Path,
        invocation: Invocation | None = None,
        planned: SweepFile | None = None,
    ) -> None:
        self.path, self._planned = path, planned
        self._invocation = invocation or Invocation()

    @property
    def is_started(self) -> bool:
        return self._planned is None

    def read(self) -> SweepView:
        """GatescopeError where the folder cannot be read."""
        asked = self._planned or sweep.read(self.path)
        if not asked.cells:
            asked = structs.replace(asked, cells=asked.bases)
        states = cells.read_all(self.path, asked)
        found = matrix.entries(asked, states)
        answers = [limits.limit(b, asked, states) for b in asked.bases if self.is_started]
        done = sum(entry.state == "done" for entry in found)
        stage = self._stage(is_done=done == len(found) and all(one.is_done for one in answers))
        return SweepView(
            f"gatescope   sweep {asked.name}   {done} of {len(found)} cells done   {stage}",
            matrix.title(asked),
            matrix.grid(found),
            (*(one.in_words for one in answers), *matrix.notes(found)),
            stage,
        )

    def start(self) -> None:
        """Start the sweep, or go on with it, as a process of its own. GatescopeError says why
        not."""
        from core.engine import detached

        asked = structs.replace(self._invocation, out=self.path)
        if self.is_started:
            asked = Invocation(resume=self.path)
        detached.start(asked, is_up=sweep.is_live)
        self._planned = None

    def stop(self) -> None:
        """Stop what runs, and wait until it has ended. A cell that has just begun is tried
        again."""
        while self.is_live():
            for own in sweep.run_directories(self.path).values():
                if control.is_live(own):
                    with contextlib.suppress(ControlError):
                        control.send(own, control.Stop())
            time.sleep(LOOK_S)

    def is_live(self) -> bool:
        return self.is_started and sweep.is_live(self.path)

    def cell(self, slug: str) -> Path | None:
        """The run directory of a cell, if it has begun."""
        own = self.path / sweep.CELLS / slug
        return own if (own / "events.jsonl").is_file() else None

    def _stage(self, *, is_done: bool) -> Stage:
        if not self.is_started:
            return "not started"
        if self.is_live():
            return "running"
        return "done" if is_done else "stopped"
