"""Whether another placement of the experts would pay: made on one part of a log, judged on another
(`core.analysis.split`).

A step costs what the busiest rank of each layer does, summed over layers: µs by the cost model
where the backend was calibrated, else its work (`core.routing.work`), or its tokens where the log
does not say how the kernel tiles. A replica takes an equal share of its expert's tokens.

Which placement is judged is decided within the first part: made from half of it, compared on the
other, then made anew from all of it. So the judged part chooses nothing.

The verdict holds the interval against the smallest saving that matters: *pays* above it, *does not
pay* below it, else *cannot tell*.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from core.analysis import split, step_work
from core.analysis.cost_model import CostModel
from core.analysis.split import MIN_STEPS, By, Split
from core.analysis.traffic import Steps
from core.routing import placement, work
from core.routing.placement import Placement
from core.routing.price import Prices
from core.stats.arrays import Floats
from core.stats.estimate import Estimate

CHUNK = 1 << 23  # counts at a time
PAYS, DOES_NOT, CANNOT_TELL = "rebalancing pays", "rebalancing does not pay", "cannot tell"
DTYPES = {"bfloat16": 2, "float16": 2, "float32": 4, "float8_e4m3fn": 1, "float8_e5m2": 1}


@dataclass(frozen=True, slots=True)
class Pricing:
    """What a step costs, in `unit`."""

    model: CostModel | None = None
    prices: Prices | None = None

    def unit(self, steps: Steps) -> str:
        if self.model:
            return "µs"
        return "work" if steps.kernel is not None and steps.kernel.tilings else "tokens"

    def cost(self, steps: Steps, loads: npt.NDArray[Any], home: tuple[int, ...]) -> Floats:
        """[steps]: of `loads` [steps, layers, physical experts], each on the rank `home` says."""
        if self.model:
            kernel = self.prices.kernel if self.prices else steps.kernel
            figures = step_work.of_loads(loads, steps.tokens, home, kernel, self.prices)
            return self.model.cost_us(figures.sum(axis=1), steps.tokens, kernel)
        amount = work.of_steps(loads, steps.tokens, home, steps.kernel).busiest().amount
        if amount is not None:
            return np.asarray(amount.sum(axis=1))
        by_rank = loads @ np.eye(max(home) + 1)[np.asarray(home)]
        return np.asarray(by_rank.max(axis=-1).sum(axis=1))


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """One placement. `saved`: % of what the steps cost as it ran (of their time, by the cost
    model); `saved_ms` a step; `spare`: replicas in all; `bytes`: of their weights on a rank, where
    the log says; `moved`: experts of all layers that come to a rank which lacks them."""

    name: str
    spare: int
    saved: Estimate
    saved_ms: Estimate | None
    moved: int
    bytes: int | None


class PhaseAdvice(msgspec.Struct, frozen=True, kw_only=True):
    """Of one phase, judged on another part of the log than it was made from. `judged_on`: windows
    of time, or datasets, that intervals rest on. `chosen`: the option that the first part chose.
    `ideal`: saved if every rank of every layer had the same; `of_other`: saved by the placement
    that the other phase chose."""

    phase: str
    steps: int
    every: int
    minutes: float | None
    ranks: int
    unit: str
    split: By = "time"
    judged_on: int = 0
    options: list[Option] = []
    chosen: str | None = None
    ideal: float | None = None
    of_other: Estimate | None = None
    verdict: str = CANNOT_TELL
    more: str = ""  # how much more to record before a verdict is possible
    reason: str | None = None

    def option(self) -> Option:
        """The chosen one."""
        return next(option for option in self.options if option.name == self.chosen)


@dataclass(frozen=True, slots=True)
class Advised:
    """The verdict on a phase, and the placement that it chose."""

    advice: PhaseAdvice
    placement: Placement | None = None


def of_phase(
    phase: str,
    steps: Steps,
    pricing: Pricing,
    *,
    ranks: int,
    spare: Sequence[int],
    smallest: float,
    by: By = "time",
    other: Placement | None = None,
) -> Advised:
    """`ranks`: to place on; `spare`: replicas to try; `smallest`: % that matters; `by`: how the log
    is split; `other`: the placement that the other phase chose. On ranks that did not run, or where
    EPLB moved experts, the kernel of each is not known: tokens are counted."""
    if steps.ranks != ranks or not steps.placement:
        steps, pricing = replace(steps, kernel=None), Pricing()
    known = PhaseAdvice(
        phase=phase,
        steps=len(steps),
        every=steps.every,
        minutes=steps.minutes if steps.has_times else None,
        ranks=ranks,
        unit=pricing.unit(steps),
        split=by,
    )
    halves = split.of(steps, by)
    if isinstance(halves, str):
        more = _longer(MIN_STEPS / len(steps) - 1, steps) if len(steps) < MIN_STEPS else ""
        return Advised(msgspec.structs.replace(known, reason=halves, more=more))
    chosen = _choose(halves, pricing, ranks, spare)
    made, judged = _options(halves.made, ranks, spare), halves.judged
    now = _now(judged, pricing, ranks)
    options = [_judged(option, halves, pricing, ranks, now) for option in made]
    best = next(option for option in options if option.name == chosen)
    verdict, more = _verdict(best.saved, smallest, steps, halves)
    advice = msgspec.structs.replace(
        known,
        judged_on=int(halves.windows.max()) + 1,
        options=options,
        chosen=chosen,
        ideal=_ideal(judged, ranks),
        of_other=None if other is None else _saved(other, halves, pricing, now),
        verdict=verdict,
        more=more,
    )
    return Advised(advice, next(option for option in made if option.name == chosen))


def _options(steps: Steps, ranks: int, spare: Sequence[int]) -> list[Placement]:
    weight = steps.loads.sum(axis=0, dtype=np.float64)
    experts = weight.shape[1]
    replicated = [placement.replicated(weight, ranks, experts + n) for n in spare if n]
    linear = [] if steps.ranks == ranks else [placement.linear(len(weight), experts, ranks)]
    return [*linear, placement.packed(weight, ranks), *replicated]


def _choose(halves: Split, pricing: Pricing, ranks: int, spare: Sequence[int]) -> str:
    """The cheapest on the second quarter, of those made from the first."""
    made = _options(halves.first, ranks, spare)
    costs = [_cost(option, halves.second, pricing).sum() for option in made]
    return made[int(np.argmin(costs))].name


def _now(steps: Steps, pricing: Pricing, ranks: int) -> Floats:
    """[steps]: the cost as it ran; on another number of ranks, of the linear placement."""
    if steps.ranks != ranks:
        linear = placement.linear(steps.loads.shape[1], steps.loads.shape[2], ranks)
        return _cost(linear, steps, pricing)
    if not steps.placement and steps.by_rank is not None:  # EPLB moved them: the log has tokens
        return np.asarray(steps.by_rank.max(axis=-1).sum(axis=1))
    return pricing.cost(steps, steps.loads, steps.placement or (0,) * steps.loads.shape[2])


def _cost(option: Placement, steps: Steps, pricing: Pricing) -> Floats:
    """[steps]."""
    slots = option.slots
    assert slots is not None  # every option is made of slots
    copies = np.stack([np.bincount(row, minlength=steps.loads.shape[2])[row] for row in slots])
    home = tuple(np.repeat(np.arange(option.ranks), slots.shape[1] // option.ranks).tolist())
    count = max(1, math.ceil(len(steps) * slots.size / CHUNK))
    parts = [steps.part(n / count, (n + 1) / count) for n in range(count)]
    found = [
        pricing.cost(part, np.take_along_axis(part.loads, slots[None], axis=2) / copies, home)
        for part in parts
    ]
    return np.concatenate(found)


def _judged(option: Placement, halves: Split, pricing: Pricing, ranks: int, now: Floats) -> Option:
    steps, saved = halves.judged, _saved(option, halves, pricing, now)
    assert option.slots is not None  # as above
    spare = option.slots.shape[1] - steps.loads.shape[2]
    ms = None
    if pricing.model:
        ms = saved.scaled(float(steps.duration_ns.mean()) / 1e6 / 100)
    return Option(
        name=option.name,
        spare=spare,
        saved=saved,
        saved_ms=ms,
        moved=_moved(option, steps, ranks),
        bytes=_bytes(steps, spare // ranks),
    )


def _saved(option: Placement, halves: Split, pricing: Pricing, now: Floats) -> Estimate:
    """% of the cost as it ran; of the step's time where the cost is one."""
    steps = halves.judged
    whole = steps.duration_ns / 1e3 if pricing.model else now
    return halves.saved(now - _cost(option, steps, pricing), whole)


def _ideal(steps: Steps, ranks: int) -> float:
    """% of the busiest ranks' tokens, if all ranks of a layer had the same."""
    even = steps.loads.sum(dtype=np.float64) / ranks
    linear = placement.linear(steps.loads.shape[1], steps.loads.shape[2], ranks)
    if steps.ranks == ranks and steps.by_rank is not None:
        now = steps.by_rank.max(axis=-1).sum()
    else:
        now = _cost(linear, steps, Pricing()).sum()
    return float(100 * (1 - even / now))


def _moved(option: Placement, steps: Steps, ranks: int) -> int:
    layers, experts = steps.loads.shape[1:]
    if steps.ranks == ranks and steps.placement:
        had = placement.of_ranks(steps.placement, layers).share > 0
    else:
        had = placement.linear(layers, experts, ranks).share > 0
    return int(((option.share > 0) & ~had).sum())


def _bytes(steps: Steps, slots: int) -> int | None:
    """Of the weights of `slots` more experts in every layer."""
    kernel = steps.kernel
    if kernel is None or not all(kernel.columns) or kernel.dtype not in DTYPES:
        return None
    first, hidden = kernel.columns  # gate and up together, so half of it goes into the second
    one = (first * hidden + hidden * first // 2) * DTYPES[kernel.dtype]
    return slots * one * int(steps.loads.shape[1])


def _verdict(saved: Estimate, smallest: float, steps: Steps, halves: Split) -> tuple[str, str]:
    if saved.value is None or saved.interval is None:
        return CANNOT_TELL, ""
    low, high = saved.interval
    if low > smallest:
        return PAYS, ""
    if high < smallest:
        return DOES_NOT, ""
    # What to record until the interval, which narrows with the root of what is recorded, is clear
    # of the smallest saving.
    half, distance = (high - low) / 2, abs(saved.value - smallest)
    times = (half / max(distance, half / 20)) ** 2 - 1
    if halves.by == "dataset":
        return (
            CANNOT_TELL,
            f"record {math.ceil(times * len(np.unique(steps.dataset)))} more datasets",
        )
    return CANNOT_TELL, _longer(times, steps)


def _longer(times: float, steps: Steps) -> str:
    """To record `times` as much again; in minutes where the log has times."""
    if steps.has_times:
        minutes = max(1, math.ceil(times * steps.minutes))
        return f"record {minutes} more minute{'s' if minutes > 1 else ''}"
    return f"record {math.ceil(times * len(steps) * steps.every)} more steps"
