"""What other placements of the experts would have saved of the decode steps that ran.

Placements are made from half of the datasets and judged on the other half, then the halves change
places: a repeat of a dataset is a copy of it, and must not stand on both sides. Of a single dataset
the halves are of its time. The first placement is the one that was cheapest where it was made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from core.analysis import step_work
from core.analysis.cost_model import CostModel
from core.analysis.step_sample import StepSample
from core.experiment import plan
from core.routing import placement
from core.routing.placement import Placement
from core.routing.price import Prices
from core.stats import bootstrap, estimate
from core.stats.arrays import Bools, Floats, Ints
from core.stats.estimate import Estimate

GPUS = (2, 4, 8)
MIN_STEPS = 20  # of a half
MIN_DATASETS = 8  # fewer: intervals rest on blocks of neighbouring steps
CHUNK = 1 << 23  # counts at a time


class Placed(msgspec.Struct, frozen=True, kw_only=True):
    """One placement on `ranks` EP ranks. `ratio`: mean over steps and layers of max/mean rank load.
    `saved`: of a decode step, in µs by the cost model; None for another number of ranks than ran,
    and where the log does not say which rank has which expert."""

    ranks: int
    name: str
    ratio: float
    saved: Estimate | None = None


@dataclass(slots=True)
class _Judged:
    """One placement over both halves."""

    made_cost: float = 0.0
    ratios: list[Floats] = field(default_factory=list)  # [steps] each
    saved: list[Floats] = field(default_factory=list)


def of_sample(sample: StepSample, model: CostModel, prices: Prices | None) -> list[Placed]:
    """Every placement, those on the ranks that ran first."""
    halves, of = _halves(sample)
    if min(halves.sum(), (~halves).sum()) < MIN_STEPS:
        return []
    ranks = [n for n in GPUS if sample.experts % n == 0]
    ranks.sort(key=lambda n: n != sample.ranks)
    found = [one for n in ranks for one in _on(sample, model, prices, n, halves, of)]
    return [*found, _as_it_ran(sample)] if sample.moved else found


def _halves(sample: StepSample) -> tuple[Bools, Ints]:
    """[decode steps]: whether a step is in the first half; and what it belongs to: its dataset, or
    where these are few a block of neighbours."""
    steps = len(sample.loads)
    names = [plan.dataset_of(label) for label in sample.labels]
    known = sorted({names[run] for run in np.unique(sample.loads_run)})
    own = np.array([known.index(name) if name in known else -1 for name in names], np.int64)
    dataset = own[sample.loads_run] if len(own) else np.zeros(0, np.int64)
    first = dataset % 2 == 0 if len(known) > 1 else np.arange(steps) < steps // 2
    if len(known) >= MIN_DATASETS:
        return first, dataset
    return first, np.arange(steps) // int(np.ceil(bootstrap.block_length(max(steps, 1))))


def _on(
    sample: StepSample,
    model: CostModel,
    prices: Prices | None,
    ranks: int,
    halves: Bools,
    of: Ints,
) -> list[Placed]:
    cost = _pricing(sample, model, prices) if ranks == sample.ranks else None
    judged: dict[str, _Judged] = {}
    for mine in (halves, ~halves):
        made, other = sample.loads[mine], sample.loads[~mine]
        now = _us(sample, model, prices, other, sample.placement) if cost else None
        for option in placement.options(made.sum(axis=0), ranks):
            one = judged.setdefault(option.name, _Judged())
            one.ratios.append(_ratios(option, other))
            one.made_cost += float(
                cost(option, made).sum() if cost else _ratios(option, made).sum()
            )
            if cost and now is not None:
                one.saved.append(now - cost(option, other))
    order = sorted(judged, key=lambda name: judged[name].made_cost)
    unit = np.concatenate([of[~halves], of[halves]])
    return [
        Placed(
            ranks=ranks,
            name=name,
            ratio=float(np.concatenate(judged[name].ratios).mean()),
            saved=_mean(np.concatenate(judged[name].saved), unit) if cost else None,
        )
        for name in order
    ]


def _ratios(option: Placement, loads: Floats) -> Floats:
    """[steps]: max/mean of rank loads, mean over layers."""
    by_rank = option.rank_loads(loads)
    mean = np.maximum(by_rank.mean(axis=-1), 1e-12)
    return np.asarray((by_rank.max(axis=-1) / mean).mean(axis=-1))


def _as_it_ran(sample: StepSample) -> Placed:
    """EPLB's placements as they were."""
    decode = sample.of_phase("decode")
    ratio = float((1 + decode["extra"] / decode["mean_load"]).mean())
    return Placed(ranks=sample.ranks, name="as it ran", ratio=ratio)


# --- prices ---

_Cost = Callable[[Placement, Floats], Floats]  # [steps], in µs


def _pricing(sample: StepSample, model: CostModel, prices: Prices | None) -> _Cost | None:
    if model.reason or not sample.placement:
        return None

    def cost(option: Placement, loads: Floats) -> Floats:
        assert option.slots is not None  # every option is made of slots
        each = max(1, CHUNK // option.slots.size)
        parts = [loads[at : at + each] for at in range(0, len(loads), each)]
        return np.concatenate([_us(sample, model, prices, *option.physical(p)) for p in parts])

    return cost


def _us(
    sample: StepSample,
    model: CostModel,
    prices: Prices | None,
    loads: Floats,
    home: Sequence[int],
) -> Floats:
    """[steps]: the work of the busiest ranks."""
    tokens = np.rint(loads[:, 0].sum(axis=1) / sample.top_k).astype(np.int64)
    kernel = prices.kernel if prices else sample.kernel
    figures = step_work.of_loads(loads, tokens, home, kernel, prices).sum(axis=1)
    return model.cost_us(figures, tokens, kernel)


def _mean(steps: Floats, unit: Ints) -> Estimate:
    """The mean over steps, with an interval over their datasets or blocks."""
    _, place = np.unique(unit, return_inverse=True)
    count = int(place.max()) + 1
    sums = np.array([np.bincount(place, values) for values in (steps, np.ones(len(steps)))])
    drawn = bootstrap.weights(count) @ sums.T
    value = float(steps.mean())
    return estimate.of(value, bootstrap.interval(value, drawn[:, 0] / drawn[:, 1], count))
