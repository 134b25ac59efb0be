"""What forced routing at a target imbalance (a dose) costs a forward pass of the built-in engine.

    python bench/dose/step_time.py [ROUNDS [TOKENS]]

Expert parallelism waits for the hot rank; tensor parallelism does not. Routing is forced through
the servers' own code. Two layouts over two ranks take turns with every dose, so that a drift of the
machine affects all alike. Ratios are against level 0 of the same layout. A hot expert's larger
groups are cheaper per token, which the ratio of tensor parallelism shows alone. Waiting shows only
where each rank has a core; where other work runs, the fastest tenth of the rounds is nearer to that
than the median.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, closing
from time import perf_counter

# As in the server.
os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import numpy as np

from core.builtin.batch import Batch, Span
from core.builtin.forcing import Forcing
from core.builtin.kv_cache import KVCache
from core.builtin.model import Model
from core.builtin.parallel import Layout, Ranks, Split
from core.builtin.weights import Shape, Weights
from core.recorder.gatescope_recorder.order import Order

RANKS = 2
PROMPT = 32
LEVELS = ("0", "0.5", "1", "1.5")
PATTERNS = ("hot-rank", "spread")
SHAPE = Shape()


def step_ms(model: Model, forcing: Forcing, dose: str, batch: Batch) -> float:
    """Time of one forward pass."""
    forced = forcing.experts([f"001~{dose}"], len(batch.tokens), len(batch.tokens))
    start = perf_counter()
    model.forward(batch, forced)
    return (perf_counter() - start) * 1e3


def main(rounds: int, tokens: int) -> None:
    """Print a table."""
    doses = [f"{pattern}~{level}" for pattern in PATTERNS for level in LEVELS]
    weights = Weights.seeded(SHAPE, 0)
    forcing = Forcing(Order(tuple(doses), RANKS), SHAPE, tokens)
    prompts = np.random.default_rng(0).integers(0, 256, (tokens // PROMPT, PROMPT))
    batch = Batch.of(
        [Span(slot, 0, row.tolist(), wants_logits=True) for slot, row in enumerate(prompts)]
    )
    machine = f"{RANKS} ranks on {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(f"{machine}; {rounds} rounds, {tokens} tokens")
    with ExitStack() as stack:
        models = {
            split: Model(
                SHAPE,
                weights,
                KVCache(SHAPE, len(prompts), PROMPT),
                stack.enter_context(closing(Ranks(SHAPE, weights, Layout(split, RANKS), tokens))),
            )
            for split in Split
        }
        times: dict[tuple[Split, str], list[float]] = {
            (split, dose): [] for split in Split for dose in doses
        }
        order = np.random.default_rng(1)
        for _ in range(rounds + 1):  # the first is a warm-up
            for place in order.permutation(len(times)):
                split, dose = list(times)[place]
                times[split, dose].append(step_ms(models[split], forcing, dose, batch))
    heads = [f"{split:>18} ms{'ratio':>7}{'fastest 10 %':>14}{'ratio':>7}" for split in Split]
    print(f"{'dose':<14}{''.join(heads)}")
    for dose in doses:
        cells = [
            _cells(times[split, dose][1:], times[split, f"{dose.partition('~')[0]}~0"][1:])
            for split in Split
        ]
        print(f"{dose:<14}" + "".join(cells))


def _cells(ms: list[float], uniform: list[float]) -> str:
    """Median and tenth percentile, each with its ratio to that of level 0."""
    (half, tenth), (half0, tenth0) = (np.percentile(values, [50, 10]) for values in (ms, uniform))
    return f"{half:>21.2f}{half / half0:>7.2f}{tenth:>14.2f}{tenth / tenth0:>7.2f}"


if __name__ == "__main__":
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    tokens = int(sys.argv[2]) if len(sys.argv) > 2 else 1024
    main(rounds, tokens)
