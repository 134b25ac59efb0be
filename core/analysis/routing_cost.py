"""What the routing of each dataset costs: its decode steps by the cost model, against a fair
router's on the very same batches, and against other placements of the experts.

Intervals are 95 %: over blocks of the dataset's steps, and over what the model's own intervals
leave open, added in quadrature.
"""

from __future__ import annotations

import math
from collections import defaultdict

import msgspec
import numpy as np

from core.analysis import step_work
from core.analysis.cost_model import PRICE, CostModel
from core.analysis.step_sample import StepSample
from core.experiment import plan
from core.routing import placement, work
from core.routing.placement import Outcome, Placement
from core.routing.price import Prices
from core.stats import bootstrap, estimate
from core.stats.arrays import Bools, Floats
from core.stats.estimate import Estimate

MIN_STEPS = 20
EDGE = 0.05  # of the time of a token: what a smaller batch must save to be named


class RoutingCost(msgspec.Struct, frozen=True, kw_only=True):
    """One dataset's, in µs a decode step, over a fair router's. `share`: in % of its median step.
    With a price list it splits into `waiting` (the busiest rank's work over the mean rank's),
    `weights` (reading those of more active experts) and `padding` (rows of tiles that hold no
    token)."""

    dataset: str
    steps: int
    over_fair: Estimate
    share: Estimate
    waiting: Estimate | None = None
    weights: Estimate | None = None
    padding: Estimate | None = None


class Edge(msgspec.Struct, frozen=True, kw_only=True):
    """A step size at which a fair router fills its tiles badly. `rows`: computed over needed, at
    `tokens` and at the `better` size; `saved`: share of the MoE layers' time for one token."""

    tokens: int
    rows: float
    better: int
    better_rows: float
    saved: float


class Placed(msgspec.Struct, frozen=True, kw_only=True):
    """A placement of experts on the ranks that ran, and what it saves of a decode step, in µs."""

    name: str
    saved: Estimate


def of_datasets(sample: StepSample, model: CostModel) -> list[RoutingCost]:
    """Every dataset with steps enough, in order; repeats that routed alike count once."""
    of = sample.of_phase("decode")
    if model.reason or not len(of.rows):
        return []
    runs: dict[str, list[int]] = defaultdict(list)
    for place in of.routed:
        runs[plan.dataset_of(of.labels[place])].append(place)
    marked = {name: np.isin(of["run"], places) for name, places in sorted(runs.items())}
    return [
        _of_dataset(name, of, model, mask)
        for name, mask in marked.items()
        if mask.sum() >= MIN_STEPS
    ]


def _of_dataset(name: str, of: StepSample, model: CostModel, mask: Bools) -> RoutingCost:
    own = of.where(mask)
    over = _over_fair(own, model)
    step = float(np.median(own["duration_us"]))
    found = RoutingCost(
        dataset=name, steps=len(own.rows), over_fair=over, share=over.scaled(100 / step)
    )
    if model.by != PRICE:
        return found
    parts = {part: _part(own, model, part) for part in ("price_us", "waiting_us", "weights_us")}
    rest = parts["price_us"] - parts["waiting_us"] - parts["weights_us"]
    return msgspec.structs.replace(
        found,
        waiting=_mean(parts["waiting_us"]),
        weights=_mean(parts["weights_us"]),
        padding=_mean(rest),
    )


def _over_fair(own: StepSample, model: CostModel) -> Estimate:
    steps = model.work_us(own) - model.work_us(own, fair=True)
    found = _mean(steps)
    if found.interval is None or found.value is None:
        return found
    open_ = math.sqrt(sum((mean * error) ** 2 for mean, error in model.open_work(own)))
    low, high = found.interval
    reach = [math.hypot(end - found.value, bootstrap.Z * open_) for end in (low, high)]
    return estimate.of(found.value, (found.value - reach[0], found.value + reach[1]))


def _part(own: StepSample, model: CostModel, name: str) -> Floats:
    cost = model.terms["price_us"].value or 0.0
    return cost * (own[name] - own[f"fair_{name}"])


def _mean(steps: Floats) -> Estimate:
    """The mean over steps, with an interval over blocks of neighbours: longer ones where these are
    alike, as where answers loop."""
    alike = min(max(bootstrap.lag_one(steps), 0.0), 0.99)
    size = int(np.ceil(max(bootstrap.block_length(len(steps)), (1 + alike) / (1 - alike))))
    block = np.arange(len(steps)) // min(size, max(1, len(steps) // 4))
    count = int(block.max()) + 1
    sums = np.array([np.bincount(block, values) for values in (steps, np.ones(len(steps)))])
    drawn = bootstrap.weights(count) @ sums.T
    value = float(steps.mean())
    return estimate.of(value, bootstrap.interval(value, drawn[:, 0] / drawn[:, 1], count))


# --- the edges of tiles ---


def edge(sample: StepSample, prices: Prices | None) -> Edge | None:
    """Of the most frequent decode step; None where a slightly smaller batch would save little, or
    no tiling is known."""
    of = sample.of_phase("decode")
    kernel = prices.kernel if prices else sample.kernel
    if not len(of.rows) or not kernel or not kernel.tilings or sample.moved:
        return None
    tokens = int(np.bincount(of["tokens"].astype(int)).argmax())
    smaller = sorted({max(1, round(tokens * share)) for share in np.linspace(0.8, 1.0, 17)})
    sizes = np.array(smaller)
    fair = step_work.fair_of(sizes, sample.experts, sample.top_k, sample.placement, kernel, prices)
    column = "price_us" if prices else "amount"
    each = fair[:, step_work.FIGURES.index(column)] / sizes
    best = int(each.argmin())
    if each[best] > (1 - EDGE) * each[-1]:
        return None
    rows = [_rows(sample, int(size), prices) for size in (tokens, sizes[best])]
    return Edge(
        tokens=tokens,
        rows=rows[0],
        better=int(sizes[best]),
        better_rows=rows[1],
        saved=1 - float(each[best] / each[-1]),
    )


def _rows(sample: StepSample, tokens: int, prices: Prices | None) -> float:
    """Rows that a fair router's step computes, over those that hold a token."""
    kernel = prices.kernel if prices else sample.kernel
    drawn = work.fair_loads(tokens, sample.experts, sample.top_k, step_work.FAIR_DRAWS)[:, None]
    done = work.of_steps(drawn, np.full(len(drawn), tokens), sample.placement, kernel)
    padded = done.padded if done.padded is not None else np.zeros(1)
    return 1 + float(padded.sum() / done.tokens.sum())


# --- other placements ---


def placed(sample: StepSample, model: CostModel, prices: Prices | None) -> list[Placed]:
    """Every placement on the ranks that ran, the one first that was cheapest on the first half of
    the decode steps: all are made from that half, and judged on the second. Empty without expert
    parallelism, or where the log does not say which rank has which expert."""
    half = len(sample.loads) // 2
    if model.reason or not sample.placement or half < MIN_STEPS:
        return []
    first, later = sample.loads[:half], sample.loads[half:]
    options = placement.options(first.sum(axis=0), sample.ranks)
    ran = placement.of_ranks(sample.placement, first.shape[1])
    costs = [_cost(sample, model, prices, first, option).mean() for option in options]
    now = _cost(sample, model, prices, later, ran)
    found = [
        Placed(name=option.name, saved=_mean(now - _cost(sample, model, prices, later, option)))
        for option in options
    ]
    return [found[place] for place in np.argsort(costs, kind="stable")]


def as_it_ran(sample: StepSample) -> Outcome:
    """EPLB's placements as they were, over the steps that the others are judged on."""
    decode = sample.of_phase("decode")
    later = slice(len(decode.rows) // 2, None)
    extra, mean = decode["extra"][later], decode["mean_load"][later]
    ratio = float((1 + extra / mean).mean())
    return Outcome(ranks=sample.ranks, name="as it ran", ratio=ratio, extra=float(extra.mean()))


def _cost(
    sample: StepSample, model: CostModel, prices: Prices | None, loads: Floats, option: Placement
) -> Floats:
    """[steps]: the work of the busiest ranks, in µs. A replica counts as an expert of its own."""
    steps, layers, experts = loads.shape
    tokens = np.rint(loads[:, 0].sum(axis=1) / sample.top_k).astype(np.int64)
    spread = (loads[..., None] * option.share).reshape(steps, layers, experts * option.ranks)
    home = tuple(range(option.ranks)) * experts
    kernel = prices.kernel if prices else sample.kernel
    figures = step_work.of_loads(spread, tokens, home, kernel, prices).sum(axis=1)
    return model.cost_us(figures, tokens, kernel)
