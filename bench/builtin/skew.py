"""What skewed routing costs: one layer's time with all tokens on one rank's experts, against evenly
spread.

Expert parallel over two ranks waits for the rank that has the tokens; tensor parallel splits every
expert and does not. Fewer experts also mean larger, cheaper products: tensor parallel's ratio shows
that alone, so that expert parallel's ratio over it is the price of waiting (at most 2, with two
free cores; 1 where other work takes the second core). The cases run by turns. A median is what was
seen; the fastest round is nearer to a quiet machine.

    python bench/builtin/skew.py [ROUNDS]
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, closing
from statistics import median
from time import perf_counter

os.environ.update(
    OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1"
)  # as in the server

import numpy as np

from core.builtin.parallel import Layout, Ranks, Split
from core.builtin.weights import Floats, Ints, Shape, Weights

TOKENS = (32, 256, 2048)  # a decode step, a small and a large prefill
RANKS = 2
SHAPE = Shape()


def spread_over(experts: int, tokens: int) -> Ints:
    """Two experts a token, in turn over the first `experts`: [tokens, 2]."""
    return np.arange(2 * tokens).reshape(tokens, 2) % experts


def layer_ms(ranks: Ranks, x: Floats, chosen: Ints) -> float:
    """One layer's experts."""
    mix = np.full(chosen.shape, 0.5, np.float32)
    start = perf_counter()
    ranks(0, x, chosen, mix)
    return (perf_counter() - start) * 1e3


def main(rounds: int) -> None:
    """Print a table."""
    weights = Weights.seeded(SHAPE, 0)
    print(
        f"{RANKS} ranks on {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {rounds} rounds by turns"
    )
    print(f"{'':>16}{'tensor parallel':>28}{'expert parallel':>28}{'price of':>11}")
    print(
        f"{'tokens':>6}{'':>10}" + f"{'even ms':>10}{'skewed':>9}{'ratio':>9}" * 2 + f"{'skew':>11}"
    )
    with ExitStack() as stack:
        layouts = {
            split: stack.enter_context(
                closing(Ranks(SHAPE, weights, Layout(split, RANKS), max(TOKENS)))
            )
            for split in Split
        }
        for tokens in TOKENS:
            x = np.random.default_rng(0).standard_normal((tokens, SHAPE.hidden), dtype=np.float32)
            cases = {
                (split, case): (ranks, x, spread_over(experts, tokens))
                for split, ranks in layouts.items()
                for case, experts in (("even", SHAPE.experts), ("skewed", SHAPE.experts // RANKS))
            }
            times = {
                case: [layer_ms(*args)] for case, args in cases.items()
            }  # the first is a warm-up
            for _ in range(rounds):
                for case, args in cases.items():
                    times[case].append(layer_ms(*args))
            print_row(tokens, "median", {case: median(ms[1:]) for case, ms in times.items()})
            print_row(tokens, "fastest", {case: min(ms[1:]) for case, ms in times.items()})


def print_row(tokens: int, name: str, ms: dict[tuple[Split, str], float]) -> None:
    """One line of the table."""
    ratios = {split: ms[split, "skewed"] / ms[split, "even"] for split in Split}
    cells = [f"{ms[s, 'even']:>10.3f}{ms[s, 'skewed']:>9.3f}{ratios[s]:>9.2f}" for s in Split]
    print(
        f"{tokens:>6} {name:<9}"
        + "".join(cells)
        + f"{ratios[Split.EXPERT] / ratios[Split.TENSOR]:>11.2f}"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
