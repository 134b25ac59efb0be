"""Expert load by layer, read from the gate logs while they grow. Imports NumPy: load it off the UI
thread."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct

from core.errors import GateLogError
from core.routing import excess, imbalance, work
from core.routing.folder import GateFolder
from core.routing.gatelog import GateLog
from core.routing.recurrence import Recurrence
from core.stats import bootstrap
from core.stats.arrays import Floats

RECENT_STEPS = 64


class LayerLoad(Struct, frozen=True):
    """One layer. `cv`: mean over steps; `floor`: a fair router's CV by chance; `excess`: None with
    a `reason`.

    `rank`: mean over steps of max/mean load per expert-parallel rank. `work`: of the busiest rank
    over a fair router's; None where the kernel's tiling is not known. `shares`: each expert's part
    of the layer's load.
    """

    layer: int
    cv: float
    floor: float | None
    excess: float | None
    reason: str
    rank: float | None
    work: float | None
    shares: tuple[float, ...]

    @property
    def hottest(self) -> int:
        return max(range(len(self.shares)), key=self.shares.__getitem__)


class Load(Struct, frozen=True):
    """The expert load of one run so far. `problem` says why there is none, or what is missing."""

    run: str = ""
    steps: int = 0
    tokens: int = 0
    layers: tuple[LayerLoad, ...] = ()
    problem: str = ""
    recent: bool = False  # whether of the last steps only


@dataclass
class Totals:
    """Running sums over the steps of one run: enough for its measures, in constant memory."""

    loads: Any = 0.0  # [layers, experts]
    numbers: tuple[int, ...] = ()  # what the layers are called
    cv: Any = 0.0  # this and the others: [layers]
    floor: Any = 0.0
    floor_fourth: Any = 0.0
    above: Any = 0.0  # CV² - floor², and its square
    above_squared: Any = 0.0
    rank: Any = 0.0
    work: Any = 0.0  # amount of the busiest rank
    fair: float = 0.0  # and under a fair router; 0: not known
    steps: int = 0
    floored: int = 0  # steps of two tokens or more: those that have a noise floor
    tokens: int = 0
    has_ranks: bool = False
    recent: list[GateLog] = field(default_factory=list)
    recurrence: Recurrence | None = None

    def add(self, log: GateLog) -> None:
        """The steps of `log` that carry tokens, all of this run."""
        if not len(log.tokens):
            return
        self._sum(log)
        steps = len(log.tokens)
        self.recent = [*self.recent, log.where(np.arange(steps) >= steps - RECENT_STEPS)]
        while sum(len(p.tokens) for p in self.recent[1:]) >= RECENT_STEPS:
            self.recent.pop(0)

    def of_recent(self) -> Totals:
        """Sums over about the last RECENT_STEPS steps."""
        totals = Totals()
        for part in self.recent:
            totals._sum(part)
        return totals

    def _sum(self, log: GateLog) -> None:
        loads = log.loads.astype(np.float64)
        cv = imbalance.cv(loads)
        self.loads = self.loads + loads.sum(axis=0)
        self.numbers = log.numbers
        self.cv = self.cv + cv.sum(axis=0)
        self.steps += len(log.tokens)
        self.tokens += int(log.tokens.sum())
        enough = log.tokens >= 2
        floor = imbalance.floor_squared(loads[enough], log.tokens[enough, None], log.top_k)
        above = cv[enough] ** 2 - floor
        self.floor = self.floor + floor.sum(axis=0)
        self.floor_fourth = self.floor_fourth + (floor**2).sum(axis=0)
        self.recurrence = self.recurrence or Recurrence(*loads.shape[1:])
        self.recurrence.add(loads, np.flatnonzero(enough))
        self.above = self.above + above.sum(axis=0)
        self.above_squared = self.above_squared + (above**2).sum(axis=0)
        self.floored += int(enough.sum())
        if (amount := work.of_busiest(log).amount) is not None:
            self.work = self.work + amount.sum(axis=0)
            self.fair += float(work.fair(log).sum())
        if log.ranks:
            self.has_ranks = True
            self.rank = self.rank + _rank_max_mean(log, loads).sum(axis=0)

    def layers(self) -> tuple[LayerLoad, ...]:
        if not self.recurrence:
            return ()
        independent = self.recurrence.effective_steps(self.floored)
        return tuple(self._layer(i, independent) for i in range(len(self.loads)))

    def _layer(self, i: int, independent: float) -> LayerLoad:
        excess, reason = self._excess(i, independent)
        total = float(self.loads[i].sum()) or 1.0
        return LayerLoad(
            layer=self.numbers[i],
            cv=float(self.cv[i]) / self.steps,
            floor=float(np.sqrt(self.floor[i] / self.floored)) if self.floored else None,
            excess=excess,
            reason=reason,
            rank=float(self.rank[i]) / self.steps if self.has_ranks else None,
            work=float(self.work[i]) / self.fair if self.fair else None,
            shares=tuple((self.loads[i] / total).tolist()),
        )

    def _excess(self, i: int, independent: float) -> tuple[float | None, str]:
        """√(mean over steps of CV² - floor²) by the rule of core.routing.excess, or the reason why
        it is not shown; `independent`: steps that do not repeat others."""
        n = self.floored
        if n < 2:
            return None, "fewer than two steps of two tokens or more"
        mean = float(self.above[i]) / n
        variance = max(0.0, float(self.above_squared[i]) / n - mean**2) * n / (n - 1)
        spread = bootstrap.t_quantile(n - 1) / bootstrap.Z * float(np.sqrt(variance / n))
        chance = float(np.sqrt(self.floor_fourth[i] * n / independent)) / n
        error = max(spread, excess.spread(chance, len(self.loads[i])))
        if mean <= excess.SHOWN * error:
            return None, f"at the noise floor over {n} steps of two tokens or more"
        return float(np.sqrt(mean)), ""


def _rank_max_mean(log: GateLog, loads: Floats) -> Floats:
    """[steps, layers]: the most loaded rank's load over the mean of all."""
    ranks = np.array(log.placement)
    by_rank = log.by_rank
    if by_rank is None:
        by_rank = np.stack(
            [loads[:, :, ranks == r].sum(axis=-1) for r in range(log.ranks)], axis=-1
        )
    mean = by_rank.mean(axis=-1)
    return np.asarray(np.where(mean > 0, by_rank.max(axis=-1) / np.where(mean > 0, mean, 1.0), 1.0))


class Loads:
    """Follows every gate log of a run directory, and sums each run."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._logs: dict[Path, GateFolder] = {}
        self._totals: dict[str, Totals] = {}
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
        totals = self._totals.get(run)
        problem = self._problems.get(backend, "")
        if totals is None:
            return Load(run=run, problem=problem)
        shown = totals.of_recent() if recent else totals
        return Load(run, shown.steps, shown.tokens, shown.layers(), problem, recent)

    def _take(self, backend: str, log: GateLog) -> None:
        for label in log.segments:
            if label not in ("", imbalance.WARMUP):
                self._totals.setdefault(f"{backend}/{label}", Totals()).add(log.of(label))
