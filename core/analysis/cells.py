"""How far the cells of a sweep are, what each has measured, and which start is to come next."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from core.analysis import results
from core.analysis.results import Results
from core.errors import GatescopeError
from core.experiment import cell as cells
from core.experiment.cell import Cell
from core.experiment.state import RunState, Snapshot
from core.experiment.sweep import Until
from core.rundir import result, sweep
from core.rundir.sweep import SweepFile
from core.stats import level
from core.stats.level import Level


@dataclass(frozen=True, slots=True)
class CellState:
    """One cell: what its journal says, and its results; None while there are none."""

    cell: Cell
    path: Path
    seen: Snapshot
    done: frozenset[str]
    group: Results | None

    def of_start(self, number: int) -> list[RunState]:
        return [run for run in self.seen.runs.values() if run.run.start == number]

    def is_pending(self, number: int, *, retry: bool = False) -> bool:
        """Whether runs of that start are left: not begun, cut off or failed; with `retry` also
        cancelled ones."""
        if not self.seen.runs:
            return True
        return any(
            run.run.id not in self.done and (retry or run.phase != "cancelled")
            for run in self.of_start(number)
        )

    @property
    def finished_starts(self) -> int:
        return sum(not self.is_pending(n) for n in range(1, self.cell.starts + 1))

    @property
    def failures(self) -> list[str]:
        """Why runs failed, each reason once."""
        return list(dict.fromkeys(r.reason for r in self.seen.runs.values() if r.phase == "failed"))

    def level(self, metric: str, confidence: float = level.LEVEL) -> Level:
        return level.of_side(self.group.by_start(metric) if self.group else {}, confidence)


def read(path: Path, cell: Cell) -> CellState:
    """The cell as its folder in the sweep's folder `path` has it."""
    own = sweep.folder(path, cell)
    seen = sweep.snapshot(own)
    done = frozenset(result.done_runs(own)) if seen.runs else frozenset[str]()
    group = None
    if done:
        with contextlib.suppress(GatescopeError):
            groups, _ = results.of_run_directory(own)
            group = next(iter(groups), None)
    return CellState(cell, own, seen, done, group)


def read_all(path: Path, asked: SweepFile) -> dict[str, CellState]:
    return {cell.slug: read(path, cell) for cell in asked.cells}


def wanted_starts(state: CellState, until: Until | None) -> int:
    """How many starts the cell is to have, by what is known now."""
    if until is None:
        return state.cell.starts
    had = state.finished_starts
    return had if is_known(state, until) else min(had + 1, until.max_starts)


def is_known(state: CellState, until: Until) -> bool:
    """Whether the cell's interval is as narrow as asked for."""
    half = known_level(state, until).half_width_pct
    return half is not None and half <= until.half_width_pct


def known_level(state: CellState, until: Until) -> Level:
    """The interval that holds with 95 % whenever a cell stops: it is looked at after every start
    from the second on, so that each look takes its share of the 5 % (Bonferroni)."""
    return state.level(until.metric, 1 - (1 - level.LEVEL) / (until.max_starts - 1))


def next_start(
    asked: SweepFile,
    states: Mapping[str, CellState],
    wanted: Mapping[str, Collection[int]],
    tried: Collection[tuple[str, int]] = (),
    *,
    retry: bool = False,
) -> tuple[Cell, int] | None:
    """The cell, and which of its starts, that is run next; None where all is run. `wanted`: the
    starts that each cell is to have; `tried`: what this session has run already, whatever came of
    it."""
    for number in sorted({number for starts in wanted.values() for number in starts}):
        for cell in cells.order(asked.cells, number, asked.seed):
            is_over = (cell.slug, number) in tried or number not in wanted[cell.slug]
            if not is_over and states[cell.slug].is_pending(number, retry=retry):
                return cell, number
    return None
