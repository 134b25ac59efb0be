"""How often a fair router is said to be skewed, and how often a skewed one is found.

    uv run python bench/analysis/null.py [--repeats 400] [--only NAME]

Each case draws gate logs in seeded repeats and measures them as gatescope does. "Found": an excess
CV is shown (per step, aggregated, and for the phase that the case is about). The routers of all
cases but the last are fair: every expert is as likely as every other; what differs is how tokens,
steps and layers depend on each other. Aim: found in 5 ± 2 % of the fair ones at most, in 90 % or
more of those with an excess CV of 0.3 in 400 independent steps. "1 SE": the rule that was, an
excess² above one standard error over blocks of steps, with the floor of unalike tokens.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import numpy as np
from support.synthetic import Counts, Floats

from core.routing import imbalance, repeats
from core.routing.blocks import ALL_STEPS, StepSums
from core.routing.gatelog import GateLog
from core.routing.measures import Resampled
from core.routing.meter import Meter
from core.routing.repeats import Repeats
from core.stats import bootstrap
from core.workload import formats, predictor

REQUESTS, LAYERS, STEPS = 30, 4, 128
SIZES = {8: 2, 256: 8}  # experts: top_k
PERIODS = (1, 2, 3, 4, 5, 7, 8, 11, 13, 16)
DATASETS = Path(__file__).parents[2] / "datasets"
FAIR_AT_MOST, FOUND_AT_LEAST = 0.07, 0.90


@dataclass(frozen=True)
class Drawn:
    """A run's loads [steps, layers, experts]; with prompt tokens in each step, or in none."""

    loads: Counts
    prompts: bool = False
    alike: Repeats | None = None


Draw = Callable[[np.random.Generator, int], Drawn]


def picks(
    rng: np.random.Generator, shape: tuple[int, ...], experts: int, preference: Floats | float = 0.0
) -> Counts:
    """[*shape, experts]: 1 where a token picks an expert, each top_k of them; `preference`: log
    weights."""
    keys = rng.gumbel(size=(*shape, experts)) + preference
    chosen = np.argpartition(-keys, SIZES[experts] - 1, axis=-1)[..., : SIZES[experts]]
    hit = np.zeros(keys.shape, np.int64)
    np.put_along_axis(hit, chosen, 1, axis=-1)
    return hit


def independent(rng: np.random.Generator, experts: int, steps: int = STEPS) -> Drawn:
    return Drawn(picks(rng, (steps, LAYERS, REQUESTS), experts).sum(2))


def short(rng: np.random.Generator, experts: int) -> Drawn:
    return independent(rng, experts, 50)


def looping(rng: np.random.Generator, experts: int, period: int) -> Drawn:
    """Every request repeats its last `period` tokens."""
    base = picks(rng, (period, LAYERS, REQUESTS), experts).sum(2)
    return Drawn(base[np.arange(STEPS) % period])


def own_loops(rng: np.random.Generator, experts: int) -> Drawn:
    """Every request loops, with a period of its own of 1 to 16."""
    base = picks(rng, (16, LAYERS, REQUESTS), experts)
    periods = rng.integers(1, 17, REQUESTS)
    place = np.arange(STEPS)[:, None] % periods
    return Drawn(base[place, :, np.arange(REQUESTS)].sum(1))


def topics(rng: np.random.Generator, experts: int, lasting: int = STEPS) -> Drawn:
    """Every request prefers experts of its own while it lasts; then another takes its place."""
    elapsed = np.arange(STEPS)[:, None] + np.arange(REQUESTS) * lasting // REQUESTS
    request = elapsed // lasting if lasting < STEPS else np.zeros_like(elapsed)
    shape = (int(request.max()) + 1, LAYERS, REQUESTS, experts)
    preference = np.log(rng.gamma(0.5, size=shape) + 0.02)
    of_step = preference[request, :, np.arange(REQUESTS)].transpose(0, 2, 1, 3)
    return Drawn(picks(rng, (STEPS, LAYERS, REQUESTS), experts, of_step).sum(2))


def turnover(rng: np.random.Generator, experts: int) -> Drawn:
    return topics(rng, experts, 40)


def same_layers(rng: np.random.Generator, experts: int, period: int) -> Drawn:
    """As `looping`, and every layer routes like the first."""
    base = picks(rng, (period, 1, REQUESTS), experts).sum(2)
    return Drawn(np.repeat(base, LAYERS, axis=1)[np.arange(STEPS) % period])


@functools.cache
def tokenized() -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Of every third dataset of the repository: its prompts' token ids."""
    files = sorted(DATASETS.glob("*.jsonl"))[1::3]
    return tuple(
        tuple(
            tuple(predictor.tokenize(p.text))
            for p in formats.read(file, file.stem).prompts[:REQUESTS]
        )
        for file in files
    )


def prompts(rng: np.random.Generator, experts: int, chunk: int = 0) -> Drawn:
    """Prefill of one of our datasets, a few prompts a step, or `chunk` tokens a step; a
    token's type alone decides where it goes, in each layer anew."""
    chosen = tokenized()[rng.integers(len(tokenized()))]
    ids, placed = np.unique(np.concatenate([np.array(p) for p in chosen]), return_inverse=True)
    where = picks(rng, (len(ids), LAYERS), experts)[placed]
    ends = np.cumsum([len(p) for p in chosen])
    starts = np.arange(0, ends[-1], chunk) if chunk else np.concatenate([[0], ends[2:-1:3]])
    return Drawn(np.add.reduceat(where, starts, axis=0), True, repeats.of(chosen))


def chunks(rng: np.random.Generator, experts: int) -> Drawn:
    return prompts(rng, experts, 64)


def one_token(rng: np.random.Generator, experts: int) -> Drawn:
    """An idle rank's dummy batch: one token, over and over."""
    return looped_dummy(picks(rng, (1, LAYERS, 1), experts).sum(2))


def looped_dummy(base: Counts) -> Drawn:
    return Drawn(np.repeat(base, 10, axis=0))


@functools.cache
def skewed(experts: int) -> Floats:
    """Log weights with which a token's picks have a CV of 0.3 over experts."""
    rng = np.random.default_rng(5)
    shape = rng.normal(size=experts)
    low, high = 0.0, 3.0
    for _ in range(12):
        scale = (low + high) / 2
        share = picks(np.random.default_rng(6), (20_000,), experts, scale * shape).mean(0)
        found = share.var() / share.mean() ** 2 - (experts / SIZES[experts] - 1) / 20_000
        low, high = (scale, high) if found < 0.09 else (low, scale)
    return np.asarray(scale * shape)


def skew(rng: np.random.Generator, experts: int, *, alike: bool = False) -> Drawn:
    """400 independent steps of a router with an excess CV of 0.3, in each layer for others, or in
    all for the same experts."""
    weights = skewed(experts)
    layers = [weights if alike else rng.permutation(weights) for _ in range(LAYERS)]
    preference = np.array(layers)[:, None]
    return Drawn(picks(rng, (400, LAYERS, REQUESTS), experts, preference).sum(2))


FAIR: dict[str, Draw] = {
    "independent tokens": independent,
    "independent, 50 steps": short,
    **{f"loops of period {p}": functools.partial(looping, period=p) for p in PERIODS},
    "loops, each its own period": own_loops,
    "topics that persist": topics,
    "topics, requests last 40 steps": turnover,
    "same layers, period 1": functools.partial(same_layers, period=1),
    "same layers, period 4": functools.partial(same_layers, period=4),
    "prompts of our datasets": prompts,
    "the same, 64 tokens a step": chunks,
    "dummy batches of one token": one_token,
}
SKEWED: dict[str, Draw] = {
    "excess CV 0.3": skew,
    "the same in all layers": functools.partial(skew, alike=True),
}


@dataclass(frozen=True)
class Found:
    """Whether one run shows an excess: per step, aggregated, by the rule that was; and the excess²
    of its steps."""

    per_step: bool
    aggregated: bool
    before: bool
    squared: float


def measured(drawn: Drawn, experts: int) -> Found:
    loads, top_k = drawn.loads, SIZES[experts]
    tokens = loads[:, 0].sum(axis=1) // top_k
    prompt = tokens if drawn.prompts else np.zeros_like(tokens)
    columns = {"index": np.arange(len(loads)), "tokens": tokens, "prefill_tokens": prompt}
    meter = Meter()
    meter.add(GateLog(loads, columns, {"001": tokens}, top_k))
    found = imbalance.of_meter(meter, "001", drawn.alike)
    phase = found.prefill if drawn.prompts else found.decode
    shown = found.excess_cv is not None or bool(phase and phase.excess_cv is not None)
    squared = np.nan if found.excess_squared is None else found.excess_squared
    return Found(shown, found.aggregated_excess_cv is not None, _before(meter), squared)


def _before(meter: Meter) -> bool:
    blocks = meter.runs["001"].grouped()
    sums = StepSums.of(Resampled.of(blocks).rows[:, ALL_STEPS]).excess_squared()
    of = StepSums.of(blocks.rows.sum(axis=0)[ALL_STEPS])
    if not of.supported or len(blocks) < 2:
        return False
    return bool(of.excess_squared() > bootstrap.standard_error(sums, len(blocks)))


def rates(draw: Draw, experts: int, repeats: int) -> Found:
    """The shares of `repeats` runs, and the mean excess²."""
    found = [
        measured(draw(np.random.default_rng(seed), experts), experts) for seed in range(repeats)
    ]
    shares = [np.mean([getattr(f, name) for f in found]) for name in Found.__dataclass_fields__]
    return Found(*shares)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=400)
    parser.add_argument("--only", default="")
    a = parser.parse_args()
    print(f"{'case':<32}{'E':>4}{'found':>8}{'aggregated':>12}{'1 SE':>8}{'mean excess²':>14}")
    for name, draw in {**FAIR, **SKEWED}.items():
        for experts in SIZES:
            if a.only in name:
                found = rates(draw, experts, a.repeats)
                shares = f"{found.per_step:>8.1%}{found.aggregated:>12.1%}{found.before:>8.1%}"
                print(f"{name:<32}{experts:>4}{shares}{found.squared:>14.4f}", flush=True)


if __name__ == "__main__":
    main()
