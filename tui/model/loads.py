"""Expert load by layer, read from the gate logs while they grow. Imports NumPy: load it off the UI
thread."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from msgspec import Struct

from core.errors import GateLogError
from core.routing import imbalance
from core.routing.folder import GateFolder
from core.routing.gatelog import GateLog
from core.routing.layers import LayerLoad, Totals

RECENT_STEPS = 64


class Load(Struct, frozen=True):
    """The expert load of one run so far. `problem` says why there is none, or what is missing."""

    run: str = ""
    steps: int = 0
    tokens: int = 0
    layers: tuple[LayerLoad, ...] = ()
    problem: str = ""
    recent: bool = False  # whether of the last steps only


@dataclass
class _Run:
    """The sums of one run, and its last steps."""

    totals: Totals = field(default_factory=Totals)
    recent: list[GateLog] = field(default_factory=list)

    def add(self, log: GateLog) -> None:
        if not len(log.tokens):
            return
        self.totals.add(log)
        steps = len(log.tokens)
        self.recent = [*self.recent, log.where(np.arange(steps) >= steps - RECENT_STEPS)]
        while sum(len(p.tokens) for p in self.recent[1:]) >= RECENT_STEPS:
            self.recent.pop(0)

    def of_recent(self) -> Totals:
        """Sums over about the last RECENT_STEPS steps."""
        totals = Totals()
        for part in self.recent:
            totals.add(part)
        return totals


class Loads:
    """Follows every gate log of a run directory, and sums each run."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._logs: dict[Path, GateFolder] = {}
        self._runs: dict[str, _Run] = {}
        self._problems: dict[str, str] = {}

    def read(self) -> None:
        """Add what was logged since the last read."""
        for folder in sorted(self.run_dir.glob("*/gate_logs*")):
            log = self._logs.setdefault(folder, GateFolder(folder))
            backend = folder.parent.name
            try:
                for part in log.blocks():
                    self._take(backend, part)
                self._problems.pop(backend, None)
            except (GateLogError, OSError) as error:
                self._problems[backend] = str(error)

    def of(self, run: str, *, recent: bool = False) -> Load:
        """The load of a run so far; its id is backend/label."""
        backend = run.partition("/")[0]
        found = self._runs.get(run)
        problem = self._problems.get(backend, "")
        if found is None:
            return Load(run=run, problem=problem)
        shown = found.of_recent() if recent else found.totals
        return Load(run, shown.steps, shown.tokens, shown.layers(), problem, recent)

    def _take(self, backend: str, log: GateLog) -> None:
        for label in log.segments:
            if label not in ("", imbalance.WARMUP):
                self._runs.setdefault(f"{backend}/{label}", _Run()).add(log.of(label))
