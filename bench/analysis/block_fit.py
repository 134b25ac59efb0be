"""How often the block of a kernel is found, missed or mistaken: by simulation, and on the measured
times of a Triton kernel whose blocks are known, as if it did not publish them.

    uv run python bench/analysis/block_fit.py [--runs 200] [--points tile_cost.json …]

Simulated kernels have times of tiles (with a block of 16 to 128), or smooth ones without tiles; the
noise is 0.5 or 2 % of a step, independent or correlated between neighbours (AR(1), 0.8). Routers
are fair, or drift between skews, with 4 layers of 8 experts. A smooth kernel with a block is a
false finding.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core.analysis import fitted_block
from core.recorder.gatescope_recorder.kernel import Kernel

EXPERTS, LAYERS, TOP_K, STEPS = 8, 4, 2, 200
# tokens, block (0: smooth), skewed: a fair router's loads seldom cross an edge of these
CASES = (
    (32, 16, True),
    (128, 64, True),
    (256, 128, True),
    (128, 64, False),
    (128, 0, True),
    (512, 0, True),
    (128, 0, False),
)

Array = npt.NDArray[Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--points", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()
    print("tokens block router noise  corr  found right  wrong   none")
    for tokens, block, is_skewed in CASES:
        for noise, correlation in itertools.product((0.005, 0.02), (0.0, 0.8)):
            shares = simulated(tokens, block, is_skewed, noise, correlation, arguments.runs)
            router = "skewed" if is_skewed else "fair"
            row = f"{tokens:6} {block or 'none':>5} {router:>6} {noise:5.3f} {correlation:5.1f}"
            print(f"{row}  {shares[0]:11.1%} {shares[1]:6.1%} {shares[2]:6.1%}")
    for path in arguments.points:
        print(f"{path.name}: {measured(json.loads(path.read_text()))}")


def simulated(
    tokens: int, block: int, is_skewed: bool, noise: float, correlation: float, runs: int
) -> tuple[float, float, float]:
    """Shares of runs in which the block was found, another one was, and none was."""
    found: Counter[str] = Counter()
    for seed in range(runs):
        rng = np.random.default_rng([seed, tokens, block, is_skewed])
        loads = routed(rng, tokens, is_skewed)
        times = times_of(rng, loads, block, noise, correlation)
        fitted = fitted_block.fit(Kernel("simulated"), loads, tokens, times)
        found[outcome(fitted, block)] += 1
    return found["right"] / runs, found["wrong"] / runs, found["none"] / runs


def outcome(fitted: fitted_block.Fitted, block: int) -> str:
    if fitted.kernel is None:
        return "none"
    return "right" if fitted.kernel.tilings[0].block_m == block else "wrong"


def routed(rng: np.random.Generator, tokens: int, is_skewed: bool) -> Array:
    """[steps, layers, experts] of Gumbel top-k, whose hot expert comes and goes if skewed."""
    heat = np.zeros((STEPS, LAYERS, 1, EXPERTS))
    if is_skewed:
        heat[..., 0] = 1 + np.sin(np.linspace(0, 12, STEPS))[:, None, None]
    keys = heat + rng.gumbel(size=(STEPS, LAYERS, tokens, EXPERTS))
    chosen = keys.argsort(axis=-1)[..., -TOP_K:]
    return np.asarray((chosen[..., None] == np.arange(EXPERTS)).sum(axis=(2, 3)))


def times_of(
    rng: np.random.Generator, loads: Array, block: int, noise: float, correlation: float
) -> Array:
    """Microseconds of each step: 2,000, 80 for an active expert, and 40 for a tile or, if smooth, 1
    for a token; the busiest expert's tokens count too, as with a thread for each expert."""
    active = (loads > 0).sum(axis=(1, 2))
    if block:
        moe = 40.0 * np.ceil(loads / block).sum(axis=(1, 2))
    else:
        moe = 1.0 * loads.sum(axis=(1, 2)) + 0.5 * loads.max(axis=2).sum(axis=1)
    plain = 2000 + 80.0 * active + moe
    wobble = rng.normal(size=len(plain))
    for step in range(1, len(wobble)):
        wobble[step] = correlation * wobble[step - 1] + (1 - correlation**2) ** 0.5 * wobble[step]
    return np.asarray(plain * (1 + noise * wobble))


def measured(points: list[dict[str, Any]]) -> str:
    """The outcomes over the shapes and sizes of measured points that name their block."""
    found: Counter[str] = Counter()
    sizes = sorted({(point["shape"], point["M"]) for point in points})
    for shape, tokens in sizes:
        own = [p for p in points if (p["shape"], p["M"]) == (shape, tokens)]
        local = own[0].get("local", own[0]["E"])
        loads = np.array([p["loads"][:local] for p in own])[:, None]
        times = np.array([p["us"] for p in own])
        fitted = fitted_block.fit(Kernel("TRITON"), loads, tokens, times)
        found[outcome(fitted, own[0]["block_m"])] += 1
    return ", ".join(f"{name} {found[name]}" for name in ("right", "wrong", "none"))


if __name__ == "__main__":
    main()
