"""What a router is expected to do with some prompts, in the measures of `core.routing.imbalance`.

A step of n tokens is expected to load expert e of a layer with x̄_e tokens, give or take a variance
v_e (0 where the routing is known). CV² and floor² are linear in S = Σ_e x_e², whose expectation is
Σ_e (x̄_e² + v_e): with k the top k, CV² = E·S/(k·n)² - 1 and floor² = E·(k - S/n²)/(k²·(n-1)), wider
as the prompts' tokens repeat. So the excess of a step is expected where that sum is put in S.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from msgspec import Struct

from core.routing import excess
from core.routing.excess import Excess
from core.routing.recurrence import Recurrence
from core.routing.repeats import Repeats
from core.stats.arrays import Floats, Ints
from core.stats.bootstrap import Interval

DRAWS = 400


class Planned(Struct, frozen=True, kw_only=True):
    """The steps that a backend is to run: prompts and tokens of a prefill step at most, tokens of a
    decode step, and EP ranks (1: no expert parallelism)."""

    prompts: int = 1
    tokens: int = 1 << 31
    decode: int = 1
    ranks: int = 1


class ExpectedPhase(Struct, frozen=True, kw_only=True):
    """One phase at the planned batch of `tokens` a step. Experts count per layer, in the mean over
    layers."""

    tokens: float
    excess_cv: float | None
    excess_cv_reason: str | None = None
    excess_cv_interval: Interval | None = None
    excess_squared: float | None = None  # signed: a value also at the noise floor
    excess_squared_error: float | None = None
    excess_squared_interval: Interval | None = None
    noise_floor: float | None = None
    active_experts: float
    busiest_rank_experts: float | None = None  # active ones; null without expert parallelism
    rank_imbalance: float | None = None  # max/mean load over EP ranks


class Expected(Struct, frozen=True, kw_only=True):
    """One dataset's routing as it was predicted. `loads`: each expert's share of a layer's picks,
    by layer and expert, in prefill."""

    model: str
    mode: str
    prompts: int
    tokens: int
    layer_numbers: list[int]
    loads: list[list[float]]
    prefill: ExpectedPhase
    decode: ExpectedPhase | None = None
    decode_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Forecast:
    """Expected loads of prompts, or of steps; top_k × tokens of each layer."""

    tokens: Ints  # [prompts]
    loads: Floats  # [prompts, layers, experts]
    spread: Floats  # [prompts, layers]: Σ over experts of the loads' variance; 0: they are known
    top_k: int
    layer_numbers: tuple[int, ...]
    repeats: Repeats | None = None  # of the prompts' tokens; None: they are taken as unalike

    def of(self, places: Ints | slice) -> Forecast:
        """Some of the prompts."""
        return replace(
            self, tokens=self.tokens[places], loads=self.loads[places], spread=self.spread[places]
        )

    def excess_squared(self) -> Floats:
        """CV² - floor² [prompts, layers]; nan for a single token."""
        n, experts = self.tokens[:, None], self.loads.shape[-1]
        cv_squared = experts * self._squares() / (self.top_k * n) ** 2 - 1
        return np.asarray(cv_squared - self.floor_squared())

    def floor_squared(self) -> Floats:
        """The squared noise floor [prompts, layers]; nan for a single token."""
        n, experts = self.tokens[:, None].astype(np.float64), self.loads.shape[-1]
        with np.errstate(divide="ignore", invalid="ignore"):
            floor = experts / self.top_k**2 * (self.top_k - self._squares() / n**2) / (n - 1)
        if self.repeats:
            floor *= np.array([[self.repeats.widening(tokens)] for tokens in self.tokens.tolist()])
        return np.asarray(np.where(n > 1, floor, np.nan))

    def _squares(self) -> Floats:
        """Σ over experts of the squared loads, as expected."""
        return np.asarray((self.loads * self.loads).sum(axis=-1) + self.spread)

    def shares(self) -> Floats:
        """Each expert's part of all picks of its layer [layers, experts]."""
        return np.asarray(self.loads.sum(axis=0) / (self.top_k * self.tokens.sum()))


def in_steps(forecast: Forecast, planned: Planned) -> Forecast:
    """The prompts in the order given, as many a step as planned; none is split."""
    step = np.empty(len(forecast.tokens), np.int64)
    number, prompts, tokens = 0, 0, 0
    for place, length in enumerate(forecast.tokens.tolist()):
        if prompts and (prompts == planned.prompts or tokens + length > planned.tokens):
            number, prompts, tokens = number + 1, 0, 0
        step[place], prompts, tokens = number, prompts + 1, tokens + length
    firsts = np.flatnonzero(np.diff(step, prepend=-1))
    return replace(
        forecast,
        tokens=np.add.reduceat(forecast.tokens, firsts),
        loads=np.add.reduceat(forecast.loads, firsts, axis=0),
        spread=np.add.reduceat(forecast.spread, firsts, axis=0),
    )


def prefill(forecast: Forecast, planned: Planned, errors: Floats | None = None) -> ExpectedPhase:
    """The steps of the prompts. The interval says what other prompts of the same kind would show:
    it rests on prompts, and on `errors`, those of a prediction's excess² in single steps."""
    steps = in_steps(forecast, planned)
    found, floor = _excess(forecast, planned, errors), _mean(steps.floor_squared())
    return phase(forecast.shares(), steps.tokens.mean(), forecast.top_k, planned, found, floor)


def phase(
    shares: Floats,
    tokens: float,
    top_k: int,
    planned: Planned,
    found: Excess,
    floor_squared: float,
) -> ExpectedPhase:
    """A phase whose steps of `tokens` each have these `shares` [layers, experts]. `floor_squared`:
    nan where no step has two tokens."""
    p = shares * top_k  # of a token to pick the expert
    active = 1 - (1 - np.minimum(p, 1.0)) ** tokens
    return ExpectedPhase(
        tokens=float(tokens),
        excess_cv=found.value,
        excess_cv_reason=found.reason,
        excess_cv_interval=found.interval,
        excess_squared=found.squared,
        excess_squared_error=found.error,
        excess_squared_interval=found.squared_interval,
        noise_floor=None if np.isnan(floor_squared) else floor_squared**0.5,
        active_experts=float(active.sum(axis=-1).mean()),
        **_ranks(shares, active, planned.ranks),
    )


def _excess(forecast: Forecast, planned: Planned, errors: Floats | None) -> Excess:
    """As measured: the mean over steps and layers, before the root; against the same chance."""
    prompts, rng = len(forecast.tokens), np.random.default_rng(0)
    draws = [
        in_steps(forecast.of(rng.integers(0, prompts, prompts)), planned) for _ in range(DRAWS)
    ]
    drawn = np.array([_mean(draw.excess_squared()) for draw in draws])
    steps = in_steps(forecast, planned)
    if errors is not None:
        drawn += rng.choice(errors, (DRAWS, len(steps.tokens))).mean(axis=1)
    squared = np.asarray(_mean(steps.excess_squared()))
    return excess.judged(squared, drawn, prompts, _by_chance(steps))


def _by_chance(steps: Forecast) -> float:
    """As `excess.by_chance`."""
    several = np.flatnonzero(steps.tokens > 1)
    floors, recurrence = steps.floor_squared()[several], Recurrence(*steps.loads.shape[1:])
    recurrence.add(steps.loads, several)
    fourth = float((floors.sum(axis=1) ** 2).sum()) / recurrence.layers
    return excess.by_chance(recurrence, len(steps.tokens), floors.size, fourth)


def _mean(values: Floats) -> float:
    """Over those that are known; nan without any."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else np.nan


def _ranks(shares: Floats, active: Floats, ranks: int) -> dict[str, float]:
    """Expected figures of the busiest of `ranks` EP ranks under linear placement, by layer, then
    their mean. Which experts are active is drawn, each by itself."""
    layers, experts = shares.shape
    if ranks < 2 or experts % ranks:
        return {}
    by_rank = shares.reshape(layers, ranks, -1).sum(axis=-1)
    drawn = np.random.default_rng(0).random((DRAWS, layers, experts)) < active
    busiest = drawn.reshape(DRAWS, layers, ranks, -1).sum(axis=-1).max(axis=-1)
    return {
        "busiest_rank_experts": float(busiest.mean()),
        "rank_imbalance": float((by_rank.max(axis=-1) * ranks).mean()),
    }
