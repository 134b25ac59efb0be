"""What a router is expected to do with some prompts, in the measures of `core.routing.imbalance`.

A step of n tokens is expected to load expert e of a layer with x̄_e tokens, give or take a variance
v_e (0 where the routing is known). CV² and floor² are linear in Σ_e x_e², whose expectation is
Σ_e (x̄_e² + v_e): with S = Σ_e x_e² and k the top k, CV² - floor² = E·S/(k·n)² · n/(n-1) - 1 -
E/(k·(n-1)). So the excess of a step is expected where that sum is put in S.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from msgspec import Struct

from core.routing import excess
from core.routing.excess import Excess
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

    def of(self, places: Ints | slice) -> Forecast:
        """Some of the prompts."""
        return replace(
            self, tokens=self.tokens[places], loads=self.loads[places], spread=self.spread[places]
        )

    def excess_squared(self) -> Floats:
        """CV² - floor² [prompts, layers]; nan for a single token."""
        n, experts = self.tokens[:, None].astype(np.float64), self.loads.shape[-1]
        squares = (self.loads * self.loads).sum(axis=-1) + self.spread
        with np.errstate(divide="ignore", invalid="ignore"):
            raw = experts * squares / (self.top_k**2 * n * (n - 1))
            found = raw - 1 - experts / (self.top_k * (n - 1))
        return np.asarray(np.where(n > 1, found, np.nan))

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
    tokens = in_steps(forecast, planned).tokens.mean()
    found = _excess(forecast, planned, errors)
    return phase(forecast.shares(), tokens, forecast.top_k, planned, found)


def phase(
    shares: Floats, tokens: float, top_k: int, planned: Planned, found: Excess
) -> ExpectedPhase:
    """A phase whose steps of `tokens` each have these `shares` [layers, experts]."""
    p = shares * top_k  # of a token to pick the expert
    active = 1 - (1 - np.minimum(p, 1.0)) ** tokens
    experts = shares.shape[-1]
    floor = experts / top_k**2 * (p * (1 - p)).sum(axis=-1).mean() / max(tokens - 1, 1)
    return ExpectedPhase(
        tokens=float(tokens),
        excess_cv=found.value,
        excess_cv_reason=found.reason,
        excess_cv_interval=found.interval,
        noise_floor=float(floor**0.5) if tokens > 1 else None,
        active_experts=float(active.sum(axis=-1).mean()),
        **_ranks(shares, active, planned.ranks),
    )


def _excess(forecast: Forecast, planned: Planned, errors: Floats | None) -> Excess:
    """As measured: the mean over steps and layers, before the root."""
    prompts, rng = len(forecast.tokens), np.random.default_rng(0)
    draws = [rng.integers(0, prompts, prompts) for _ in range(DRAWS)]
    drawn = np.array([_mean(forecast.of(draw), planned) for draw in draws])
    if errors is not None:
        steps = len(in_steps(forecast, planned).tokens)
        drawn += rng.choice(errors, (DRAWS, steps)).mean(axis=1)
    return excess.judged(np.asarray(_mean(forecast, planned)), drawn, prompts)


def _mean(forecast: Forecast, planned: Planned) -> float:
    squared = in_steps(forecast, planned).excess_squared()
    return float(np.nanmean(squared)) if np.isfinite(squared).any() else np.nan


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
