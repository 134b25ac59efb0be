"""What the routing of each dataset costs: its decode steps by the cost model, against a fair
router's on the very same batches, and against other placements of the experts.

Intervals are 95 %: over blocks of the dataset's steps, and over what the model's own intervals
leave open, added in quadrature; to the upper end, the most that rows of padding can have added.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from core.analysis import calibration, cost_model, placed, step_sample, step_work
from core.analysis.calibration import Calibration
from core.analysis.cost_model import PRICE, Check, CostModel
from core.analysis.placed import Placed
from core.analysis.step_sample import StepSample
from core.errors import GateLogError
from core.experiment import plan
from core.recorder.gatescope_recorder.kernel import Kernel
from core.routing import work
from core.routing.price import Prices
from core.rundir.about import About
from core.rundir.selection import ALL, Selection
from core.stats import bootstrap, estimate
from core.stats.arrays import Bools, Floats
from core.stats.estimate import Estimate

MIN_STEPS = 20
EDGE = 0.05  # of the time of a token: what a smaller batch must save to be named
SMALLER = 0.7  # of the batch: the smallest one that is tried
FREQUENT = 8  # step sizes that are looked at


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
    """How a fair router fills its tiles in steps of `tokens`. `rows`: computed over needed, there
    and at the `better` size; `saved`: share of the MoE layers' time for one token. Where no size of
    `SMALLER` to 1 of it saves `EDGE`, the better one is the same."""

    tokens: int
    rows: float
    better: int
    better_rows: float
    saved: float


class BackendCost(msgspec.Struct, frozen=True, kw_only=True):
    """What routing cost one backend's decode steps. `calibrated`: when, by a sweep of its own, and
    `check`: how well that predicts these runs; None: the model is fitted to these very runs."""

    backend: str
    model: CostModel
    calibrated: str | None = None
    check: Check | None = None
    datasets: list[RoutingCost] = []
    edges: list[Edge] = []
    placements: list[Placed] = []


def of_run_directory(
    path: Path, about: About, names: Sequence[str], chosen: Selection = ALL
) -> list[BackendCost]:
    """Every backend whose gate logs can be read."""
    found = []
    for name in names:
        known = calibration.of_backend(about, name)
        prices = known.prices() if known else None
        try:
            natural, every = (
                step_sample.of_backend(path, name, chosen, prices, forced=forced)
                for forced in (False, True)
            )
        except (GateLogError, OSError):  # the report names it elsewhere
            continue
        found.append(of_backend(name, natural, every, known, prices))
    return found


def of_backend(
    name: str,
    natural: StepSample,
    every: StepSample,
    known: Calibration | None,
    prices: Prices | None,
) -> BackendCost:
    """From the naturally routed steps, and `every` step, those of forced routing too."""
    model = known.decode if known else cost_model.fit(every, "decode")
    has_steps = not model.reason and len(every.of_phase("decode").rows) > 0
    return BackendCost(
        backend=name,
        model=model,
        calibrated=known.made if known else None,
        check=cost_model.check(model, every) if known and has_steps else None,
        datasets=of_datasets(natural, model),
        edges=edges(natural, prices),
        placements=placed.of_sample(natural, model, prices),
    )


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
    steps = model.work_us(own) - model.work_us(own, "fair_")
    found = _mean(steps)
    if found.interval is None or found.value is None:
        return found
    open_ = math.sqrt(sum((mean * error) ** 2 for mean, error in model.open_work(own)))
    low, high = found.interval
    reach = [math.hypot(end - found.value, bootstrap.Z * open_) for end in (low, high)]
    padding = float((model.work_us(own, "most_") - model.work_us(own)).mean())
    return estimate.of(found.value, (found.value - reach[0], found.value + reach[1] + padding))


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


def edges(sample: StepSample, prices: Prices | None) -> list[Edge]:
    """Of the frequent decode steps for which a smaller batch is better, the worst first; else of
    the largest one. Empty where no tiling is known."""
    of = sample.of_phase("decode")
    kernel = prices.kernel if prices else sample.kernel
    if not len(of.rows) or not kernel or not kernel.tilings or sample.moved:
        return []
    sizes, counts = np.unique(of["tokens"].astype(int), return_counts=True)
    frequent = sizes[np.argsort(-counts, kind="stable")][: (counts >= MIN_STEPS).sum()][:FREQUENT]
    found = [_edge(sample, int(tokens), kernel, prices) for tokens in sorted(frequent)]
    bad = [one for one in found if one.better < one.tokens]
    return sorted(bad, key=lambda one: -one.saved) or found[-1:]


def _edge(sample: StepSample, tokens: int, kernel: Kernel, prices: Prices | None) -> Edge:
    shares = np.linspace(SMALLER, 1.0, 25)
    sizes = np.unique(np.maximum(1, np.rint(tokens * shares))).astype(int)
    fair = step_work.fair_of(sizes, sample.experts, sample.top_k, sample.placement, kernel, prices)
    column = "price_us" if prices else "amount"
    each = fair[:, step_work.FIGURES.index(column)] / sizes
    best = int(each.argmin())
    best = best if each[best] < (1 - EDGE) * each[-1] else len(sizes) - 1
    return Edge(
        tokens=tokens,
        rows=_rows(sample, tokens, kernel),
        better=int(sizes[best]),
        better_rows=_rows(sample, int(sizes[best]), kernel),
        saved=1 - float(each[best] / each[-1]),
    )


def _rows(sample: StepSample, tokens: int, kernel: Kernel) -> float:
    """Rows that a fair router's step computes, over those that hold a token."""
    drawn = work.fair_loads(tokens, sample.experts, sample.top_k, step_work.FAIR_DRAWS)[:, None]
    done = work.of_steps(drawn, np.full(len(drawn), tokens), sample.placement, kernel)
    padded = done.padded if done.padded is not None else np.zeros(1)
    return 1 + float(padded.sum() / done.tokens.sum())
