"""What skewed routing costs: the time of one layer with all tokens on one rank's experts, against
evenly spread tokens.

    python bench/builtin/skew.py [ROUNDS]

With expert parallelism, a step waits for the rank that has the tokens. With tensor parallelism
every expert is split, and nothing waits. Fewer experts also mean larger, cheaper matrix products,
which the ratio of tensor parallelism shows alone. So the ratio of expert parallelism over it is the
price of waiting: at most 2 with two free cores, 1 where other work takes the second core. The cases
take turns. The fastest round is nearer to a quiet machine than the median.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, closing
from statistics import median
from time import perf_counter

# As in the server.
os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import numpy as np

from core.builtin.parallel import Layout, Ranks, Split
from core.builtin.weights import Floats, Ints, Shape, Weights

TOKENS = (32, 256, 2048)  # a decode step, a small and a large prefill
RANKS = 2
SHAPE = Shape()
Case = tuple[Split, str]


def spread_over(experts: int, tokens: int) -> Ints:
    """Two experts a token, cycling through the first `experts`: [tokens, 2]."""
    return np.arange(2 * tokens).reshape(tokens, 2) % experts


def layer_ms(ranks: Ranks, x: Floats, chosen: Ints) -> float:
    """Time of one layer's experts."""
    mix = np.full(chosen.shape, 0.5, np.float32)
    start = perf_counter()
    ranks(0, x, chosen, mix)
    return (perf_counter() - start) * 1e3


def main(rounds: int) -> None:
    """Print a table."""
    weights = Weights.seeded(SHAPE, 0)
    machine = f"{RANKS} ranks on {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(f"{machine}; {rounds} alternated rounds")
    print(f"{'':>16}{'tensor parallel':>28}{'expert parallel':>28}{'price of':>11}")
    times = f"{'even ms':>10}{'skewed':>9}{'ratio':>9}"
    print(f"{'tokens':>6}{'':>10}{times}{times}{'skew':>11}")
    with ExitStack() as stack:
        layouts = {
            split: stack.enter_context(
                closing(Ranks(SHAPE, weights, Layout(split, RANKS), max(TOKENS)))
            )
            for split in Split
        }
        for tokens in TOKENS:
            ms = alternated(layouts, tokens, rounds)
            print_row(tokens, "median", {case: median(values) for case, values in ms.items()})
            print_row(tokens, "fastest", {case: min(values) for case, values in ms.items()})


def alternated(layouts: dict[Split, Ranks], tokens: int, rounds: int) -> dict[Case, list[float]]:
    """Milliseconds of every case, a value a round."""
    x = np.random.default_rng(0).standard_normal((tokens, SHAPE.hidden), dtype=np.float32)
    cases = {
        (split, name): (ranks, x, spread_over(experts, tokens))
        for split, ranks in layouts.items()
        for name, experts in (("even", SHAPE.experts), ("skewed", SHAPE.experts // RANKS))
    }
    ms: dict[Case, list[float]] = {case: [] for case in cases}
    for _ in range(rounds + 1):
        for case, args in cases.items():
            ms[case].append(layer_ms(*args))
    return {case: values[1:] for case, values in ms.items()}  # the first is a warm-up


def print_row(tokens: int, name: str, ms: dict[Case, float]) -> None:
    ratios = {split: ms[split, "skewed"] / ms[split, "even"] for split in Split}
    cells = [f"{ms[s, 'even']:>10.3f}{ms[s, 'skewed']:>9.3f}{ratios[s]:>9.2f}" for s in Split]
    price = ratios[Split.EXPERT] / ratios[Split.TENSOR]
    print(f"{tokens:>6} {name:<9}{''.join(cells)}{price:>11.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
