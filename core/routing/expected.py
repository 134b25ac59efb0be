"""What a router is expected to do with some prompts, in the measures of `core.routing.imbalance`.

A step of n tokens is expected to load expert e of a layer with x̄_e tokens, give or take a variance
v_e (0 where the routing is known). CV² and floor² are linear in S = Σ_e x_e², whose expectation is
Σ_e (x̄_e² + v_e): with k the top k, CV² = E·S/(k·n)² - 1 and floor² = E·(k - S/n²)/(k²·(n-1)), wider
as the prompts' tokens repeat. So the excess of a step is expected where that sum is put in S.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from msgspec import Struct, structs

from core.routing import excess
from core.routing.excess import Excess
from core.routing.recurrence import Recurrence
from core.routing.repeats import Repeats
from core.stats import bootstrap
from core.stats.arrays import Floats, Ints
from core.stats.bootstrap import Interval

DRAWS = 400
NEAREST = 8  # checked datasets that say how far another is off


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
    run_interval: Interval | None = None  # of excess_squared in a run of these prompts; null: known
    noise_floor: float | None = None
    active_experts: float
    busiest_rank_experts: float | None = None  # active ones; null without expert parallelism
    rank_imbalance: float | None = None  # max/mean load over EP ranks
    step_ms: float | None = None  # mean, by the backend's cost model


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
    ttft_ms: float | None = None  # mean, of prompts that are sent at once
    tpot_ms: float | None = None
    times_reason: str | None = None  # why some are missing

    def phase(self, name: str) -> ExpectedPhase | None:
        return self.prefill if name == "prefill" else self.decode


@dataclass(frozen=True, slots=True)
class Checked:
    """Datasets whose loads were known: the excess² that was expected of each, and measured less
    expected, in units of `Forecast.error` [datasets]."""

    expected: Floats
    off: Floats

    def near(self, value: float) -> tuple[float, float]:
        """How far a dataset of that expected excess² is off, and its standard deviation, so that
        Z of it are as far as Student's quantile: of the NEAREST."""
        some = self.off[np.argsort(abs(self.expected - value), kind="stable")[:NEAREST]]
        count = len(some)
        wider = bootstrap.t_quantile(count - 1) / bootstrap.Z * (1 + 1 / count) ** 0.5
        return float(some.mean()), float(some.std(ddof=1) * wider)


@dataclass(frozen=True, slots=True)
class Doubt:
    """How far expected loads may be off: those of a layer and expert e are normal about them, with
    covariance scale_e · alike. `checked`: how far excess² was off with that doubt."""

    alike: Floats  # [layers, prompts, prompts]
    scale: Floats  # [layers, experts]
    checked: Checked | None = None

    def of(self, places: Ints | slice | list[int]) -> Doubt:
        return replace(self, alike=self.alike[:, places][:, :, places])

    def joined(self, firsts: Ints) -> Doubt:
        rows = np.add.reduceat(self.alike, firsts, axis=1)
        return replace(self, alike=np.add.reduceat(rows, firsts, axis=2))

    def spread(self) -> Floats:
        """Σ over experts of the loads' variance [prompts, layers]."""
        return np.asarray(np.diagonal(self.alike, axis1=1, axis2=2).T * self.scale.sum(axis=1))


@dataclass(frozen=True, slots=True)
class Forecast:
    """Expected loads of prompts, or of steps; top_k × tokens of each layer."""

    tokens: Ints  # [prompts]
    loads: Floats  # [prompts, layers, experts]
    top_k: int
    layer_numbers: tuple[int, ...]
    doubt: Doubt | None = None  # None: the loads are known
    repeats: Repeats | None = None  # of the prompts' tokens; None: they are taken as unalike

    def of(self, places: Ints | slice | list[int]) -> Forecast:
        """Some of the prompts."""
        return replace(
            self,
            tokens=self.tokens[places],
            loads=self.loads[places],
            doubt=self.doubt and self.doubt.of(places),
        )

    def joined(self, firsts: Ints) -> Forecast:
        """Prompts from each of `firsts` to the next as one."""
        return replace(
            self,
            tokens=np.add.reduceat(self.tokens, firsts),
            loads=np.add.reduceat(self.loads, firsts, axis=0),
            doubt=self.doubt and self.doubt.joined(firsts),
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
        return np.asarray(np.where(n > 1, floor * self._widening()[:, None], np.nan))

    def error(self) -> float:
        """The standard deviation of the steps' mean excess² about what is expected, by `doubt`: it
        is the form x'Wx of normal loads, of variance 2 tr(WCWC) + 4 x̄'WCWx̄ for each layer and
        expert. 0 where loads are known; nan without a step of two tokens."""
        own = self.of(np.flatnonzero(self.tokens > 1))
        if own.doubt is None or not len(own.tokens):
            return 0.0 if own.doubt is None else np.nan
        n, experts = own.tokens.astype(np.float64), own.loads.shape[-1]
        each = experts / (own.top_k * n) ** 2 * (1 + own._widening() / (n - 1))
        weights = each / (len(n) * own.loads.shape[1])
        alike, scale = weights[:, None] * own.doubt.alike, own.doubt.scale  # WC by layer
        traces = np.einsum("lpq,lqp->l", alike, alike)
        pulled = np.einsum("ple,lpq,q,qle->le", own.loads, alike, weights, own.loads)
        variance = 2 * traces @ (scale * scale).sum(axis=1) + 4 * (scale * pulled).sum()
        return float(np.sqrt(variance))

    def mean_excess(self) -> tuple[float, float]:
        """Of steps: the mean of their excess² as expected, with what datasets like these were off
        by, and its standard deviation by the doubt; nan where no step has two tokens."""
        value, error = _mean(self.excess_squared()), self.error()
        if not self.doubt or not self.doubt.checked:
            return value, error
        off, spread = self.doubt.checked.near(value)
        return value + off * error, spread * error

    def _widening(self) -> Floats:
        """Of each squared noise floor, by tokens that repeat [prompts]."""
        if not self.repeats:
            return np.ones(len(self.tokens))
        return np.array([self.repeats.widening(tokens) for tokens in self.tokens.tolist()])

    def _squares(self) -> Floats:
        """Σ over experts of the squared loads, as expected."""
        known = (self.loads * self.loads).sum(axis=-1)
        return np.asarray(known if self.doubt is None else known + self.doubt.spread())

    def shares(self) -> Floats:
        """Each expert's part of all picks of its layer [layers, experts]."""
        return np.asarray(self.loads.sum(axis=0) / (self.top_k * self.tokens.sum()))


def in_steps(forecast: Forecast, planned: Planned) -> Forecast:
    """The prompts in the order given, as many a step as planned; none is split."""
    return forecast.joined(firsts(forecast.tokens, planned))


def firsts(lengths: Ints, planned: Planned) -> Ints:
    """The first prompt of each step, of prompts of `lengths` tokens."""
    found, prompts, tokens = [], planned.prompts, 0
    for place, length in enumerate(lengths.tolist()):
        if prompts == planned.prompts or tokens + length > planned.tokens:
            found.append(place)
            prompts, tokens = 0, 0
        prompts, tokens = prompts + 1, tokens + length
    return np.array(found)


def prefill(forecast: Forecast, planned: Planned) -> ExpectedPhase:
    """The steps of the prompts. The interval says what other prompts of the same kind would show:
    it rests on prompts, and on the forecast's doubt; `run_interval` on that doubt alone."""
    steps = in_steps(forecast, planned)
    value, error = steps.mean_excess()
    found, floor = _excess(forecast, planned, value, error), _mean(steps.floor_squared())
    of = phase(forecast.shares(), steps.tokens.mean(), forecast.top_k, planned, found, floor)
    if forecast.doubt is None or np.isnan(value):
        return of
    off = bootstrap.Z * error
    return structs.replace(of, run_interval=(value - off, value + off))


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
    busiest, ratio = _ranks(shares, active, planned.ranks)
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
        busiest_rank_experts=busiest,
        rank_imbalance=ratio,
    )


def _excess(forecast: Forecast, planned: Planned, value: float, error: float) -> Excess:
    """As measured: the mean over steps and layers, before the root; against the same chance.
    `value`, `error`: as `mean_excess`."""
    prompts, rng = len(forecast.tokens), np.random.default_rng(0)
    draws = [
        in_steps(forecast.of(rng.integers(0, prompts, prompts)), planned) for _ in range(DRAWS)
    ]
    drawn = np.array([_mean(draw.excess_squared()) for draw in draws])
    steps = in_steps(forecast, planned)
    drawn += value - _mean(steps.excess_squared()) + error * rng.standard_normal(DRAWS)
    return excess.judged(np.asarray(value), drawn, prompts, _by_chance(steps))


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


def _ranks(shares: Floats, active: Floats, ranks: int) -> tuple[float | None, float | None]:
    """Expected active experts and max/mean load of the busiest of `ranks` EP ranks under linear
    placement, by layer, then their mean. Which experts are active is drawn, each by itself."""
    layers, experts = shares.shape
    if ranks < 2 or experts % ranks:
        return None, None
    by_rank = shares.reshape(layers, ranks, -1).sum(axis=-1)
    drawn = np.random.default_rng(0).random((DRAWS, layers, experts)) < active
    busiest = drawn.reshape(DRAWS, layers, ranks, -1).sum(axis=-1).max(axis=-1)
    return float(busiest.mean()), float((by_rank.max(axis=-1) * ranks).mean())
