"""Expert load by layer: running sums over the steps of a log, and what they show."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from msgspec import Struct

from core.routing import excess, imbalance, work
from core.routing.gatelog import GateLog
from core.routing.recurrence import Recurrence
from core.stats import bootstrap
from core.stats.arrays import Floats

KEPT = ("numbers", "has_ranks", "recurrence")  # of Totals: no sums


class LayerLoad(Struct, frozen=True):
    """One layer. `cv`: mean over steps; `floor`: a fair router's CV by chance; `excess`: None with
    a `reason`.

    `rank`: mean over steps of max/mean load per expert-parallel rank. `work`: of the busiest rank
    over a fair router's; None where the kernel's tiling is not known. `active`: experts with a
    token, mean over steps. `shares`: each expert's part of the layer's load; `rank_shares`: each
    expert-parallel rank's.
    """

    layer: int
    cv: float
    floor: float | None
    excess: float | None
    reason: str
    rank: float | None
    work: float | None
    shares: tuple[float, ...]
    active: float = 0.0
    rank_shares: tuple[float, ...] = ()

    @property
    def hottest(self) -> int:
        return max(range(len(self.shares)), key=self.shares.__getitem__)


@dataclass
class Totals:
    """Running sums over steps: enough for their measures, in constant memory."""

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
    duration_ns: int = 0
    active: Any = 0.0  # [layers]: experts with a token
    by_rank: Any = 0.0  # [layers, ranks]: loads
    has_ranks: bool = False
    recurrence: Recurrence | None = None

    def add(self, log: GateLog) -> None:
        """Steps that all carry tokens."""
        if not len(log.tokens):
            return
        loads = log.loads.astype(np.float64)
        cv = imbalance.cv(loads)
        self.loads = self.loads + loads.sum(axis=0)
        self.numbers = log.numbers
        self.cv = self.cv + cv.sum(axis=0)
        self.active = self.active + (log.loads > 0).sum(axis=(0, 2))
        self.duration_ns += int(log.columns.get("duration_ns", np.zeros(1)).sum())
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
        if (by_rank := log.rank_loads()) is not None:
            self.has_ranks = True
            self.by_rank = self.by_rank + by_rank.sum(axis=0)
            self.rank = self.rank + _max_mean(by_rank).sum(axis=0)

    def layers(self) -> tuple[LayerLoad, ...]:
        if not self.recurrence or not self.steps:
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
            active=float(self.active[i]) / self.steps,
            rank_shares=tuple((self.by_rank[i] / total).tolist()) if self.has_ranks else (),
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


def joined(parts: Iterable[Totals]) -> Totals:
    """The sums of several stretches of one log, which were given one `recurrence`: what repeats
    may repeat in another stretch only."""
    whole = Totals()
    for part in parts:
        for name in (f.name for f in fields(Totals) if f.name not in KEPT):
            setattr(whole, name, getattr(whole, name) + getattr(part, name))
        whole.numbers, whole.has_ranks = part.numbers, part.has_ranks
        whole.recurrence = part.recurrence
    return whole


def _max_mean(by_rank: Floats) -> Floats:
    """[steps, layers]: the most loaded rank's load over the mean of all."""
    mean = by_rank.mean(axis=-1)
    return np.asarray(np.where(mean > 0, by_rank.max(axis=-1) / np.where(mean > 0, mean, 1.0), 1.0))
