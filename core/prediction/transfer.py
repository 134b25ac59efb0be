"""How a model's routing carries over from prefill to decode, measured in a recorded run.

What sets a dataset's prefill shares apart from those of all recorded datasets is expected in decode
by the slope of its layer: 1 carries it over whole, 0 not at all. With Q = Σ share², a step of
independent tokens has the excess² E·Q - 1, whatever their number. What recorded decode shows beyond
that in the mean, for its tokens are no independent ones, is added; how far each recorded dataset is
off, predicted from the others, gives the interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from msgspec import structs

from core.prediction.recorded import Phases
from core.routing import expected
from core.routing.excess import Excess
from core.routing.expected import ExpectedPhase, Planned
from core.stats import bootstrap
from core.stats.arrays import Floats
from core.stats.bootstrap import Interval


@dataclass(frozen=True, slots=True)
class Transfer:
    """Learned from some recorded datasets; all by layer."""

    prefill: Floats  # [layers, experts]: mean shares
    decode: Floats
    slope: Floats  # [layers]
    beyond: float  # excess² that recorded decode shows beyond its shares'

    def shares(self, prefill: Floats, layers: list[int] | slice = slice(None)) -> Floats:
        """Expected decode shares [layers, experts] of a dataset with these in prefill."""
        own = self.slope[layers, None] * (prefill - self.prefill[layers])
        found = np.maximum(self.decode[layers] + own, 0.0)
        return np.asarray(found / found.sum(axis=-1, keepdims=True))

    def excess_squared(self, shares: Floats) -> float:
        """Of decode steps with these shares."""
        return _of_shares(shares) + self.beyond


@dataclass(frozen=True, slots=True)
class Decode:
    """What decode is expected to do. `slope`: the transfer over all layers, with its interval;
    `errors` [datasets]: measured less predicted excess² of each, predicted from the others."""

    transfer: Transfer
    layer_numbers: tuple[int, ...]
    slope: float
    slope_interval: Interval
    errors: Floats

    def shares(self, prefill: Floats, layer_numbers: Sequence[int]) -> Floats:
        """Of a dataset with these in prefill [layers, experts]."""
        return self.transfer.shares(prefill, [self.layer_numbers.index(n) for n in layer_numbers])

    def phase(self, shares: Floats, top_k: int, planned: Planned) -> ExpectedPhase:
        """Of a dataset with these decode shares [layers, experts]."""
        n, experts = planned.decode, shares.shape[-1]
        if n < 2:
            none = Excess(None, "a decode step of one token has no noise floor; name --backend")
            return expected.phase(shares, n, top_k, planned, none, math.nan)
        value, runs = self.transfer.excess_squared(shares), len(self.errors)
        error = float(np.sqrt((self.errors**2).mean() * (1 + 1 / runs)))
        off = bootstrap.t_quantile(runs - 1) * error
        floor = experts * (1 / top_k - float((shares * shares).sum(axis=-1).mean())) / n
        ends = (value - off, value + off)
        if value > off:
            found = Excess(value**0.5, None, (ends[0] ** 0.5, ends[1] ** 0.5), value, error, ends)
        else:
            why = f"excess² {value:.4g} is not sure to be above 0: its error is {error:.4g}"
            found = Excess(None, why, None, value, error, ends)
        of = expected.phase(shares, n, top_k, planned, found, floor)
        return structs.replace(of, run_interval=ends)


def learn(of: Phases) -> Decode:
    """From at least two datasets."""
    places = np.arange(len(of.measured))
    without = [_learned(of, places[places != place]) for place in places]
    errors = [
        of.measured[place] - one.excess_squared(one.shares(of.prefill[place]))
        for place, one in enumerate(without)
    ]
    slopes = np.array([_slope(of, places[places != place]) for place in places])
    whole = _slope(of, places)
    error = math.sqrt((len(places) - 1) * slopes.var())  # the jackknife's
    off = bootstrap.t_quantile(len(places) - 1) * error
    return Decode(
        _learned(of, places), of.layer_numbers, whole, (whole - off, whole + off), np.array(errors)
    )


def _learned(of: Phases, some: np.typing.NDArray[np.int64]) -> Transfer:
    prefill, decode = of.prefill[some], of.decode[some]
    found = Transfer(
        prefill.mean(axis=0), decode.mean(axis=0), np.asarray(_slopes(prefill, decode)), 0.0
    )
    known = [_of_shares(found.shares(own)) for own in prefill]
    return Transfer(
        found.prefill, found.decode, found.slope, float((of.measured[some] - known).mean())
    )


def _slopes(prefill: Floats, decode: Floats) -> Floats:
    """Least squares over datasets and experts [layers]."""
    apart, after = (each - each.mean(axis=0) for each in (prefill, decode))
    return np.asarray((apart * after).sum(axis=(0, 2)) / (apart * apart).sum(axis=(0, 2)))


def _slope(of: Phases, some: np.typing.NDArray[np.int64]) -> float:
    """Over all layers."""
    one = (len(some), 1, -1)
    return float(_slopes(of.prefill[some].reshape(one), of.decode[some].reshape(one))[0])


def _of_shares(shares: Floats) -> float:
    return float(shares.shape[-1] * (shares * shares).sum(axis=-1).mean() - 1)
