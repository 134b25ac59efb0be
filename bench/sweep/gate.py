"""How often a gate of +2 % fails, and passes, with a planted change, by simulation: restarts of
1.3 % (SD), noise of a run 3 %, ten datasets; of means, and of p99s of 100 requests. Then the real
command on result files, 20 times each.

    uv run python -m bench.sweep.gate
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.sweep import simulated
from core import cli
from core.analysis import gate

LIMIT = gate.parse("mean_tpot_ms<=+2%")
DATASETS = 10
CHANGES = (0.0, 0.02, 0.05, 0.10)
COMMANDS = 20


def rates(
    change: float, starts: int, pairs: int, repeats: int, seed: int = 0, *, p99: bool = False
) -> Counter[str]:
    """Answers of a whole gate, `repeats` times: failed where any of its pairs failed, passed where
    all passed. Every pair has the planted change."""
    rng = np.random.default_rng(seed)
    return Counter(_answer(rng, change, starts, pairs, p99=p99) for _ in range(repeats))


def commands(folder: Path, change: float, starts: int, seed: int = 0) -> list[int]:
    """Exit codes of `gatescope compare` on COMMANDS pairs of run directories."""
    rng = np.random.default_rng(seed)
    return [_command(rng, folder / f"{n}", change, starts) for n in range(COMMANDS)]


def _answer(rng: np.random.Generator, change: float, starts: int, pairs: int, *, p99: bool) -> str:
    answers = {
        gate.rule(
            LIMIT,
            "",
            (
                simulated.drawn(rng, starts, DATASETS, p99=p99),
                simulated.drawn(rng, starts, DATASETS, change, p99=p99),
            ),
            pairs,
        ).answer
        for _ in range(pairs)
    }
    return next(a for a in ("failed", "inconclusive", "passed") if a in answers)


def _command(rng: np.random.Generator, folder: Path, change: float, starts: int) -> int:
    sides = (simulated.drawn(rng, starts, DATASETS, moved) for moved in (0.0, change))
    before, after = (
        simulated.write(folder / name, {"baseline": side})
        for name, side in zip(("before", "after"), sides, strict=True)
    )
    with contextlib.redirect_stdout(io.StringIO()):
        return cli.main(["compare", str(before), str(after), "--gate", LIMIT.text])


def _rows(repeats: int) -> Iterator[str]:
    head = f"{'of':>5}{'change':>7}{'starts':>8}{'pairs':>7}"
    yield f"{head}{'failed':>9}{'passed':>9}{'inconclusive':>14}"
    for name, pairs in (("mean", 1), ("mean", 8), ("p99", 1)):
        for change in CHANGES:
            for starts in (2, 3, 5, 8):
                seen = rates(change, starts, pairs, repeats // pairs, p99=name == "p99")
                shares = (
                    100 * seen[a] / seen.total() for a in ("failed", "passed", "inconclusive")
                )
                failed, passed, neither = shares
                head = f"{name:>5}{100 * change:>6.0f}%{starts:>8}{pairs:>7}"
                yield f"{head}{failed:>8.1f}%{passed:>8.1f}%{neither:>13.1f}%"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeats", type=int, default=1000)
    for row in _rows(parser.parse_args().repeats):
        print(row, flush=True)
    for change in (0.0, 0.10):
        with tempfile.TemporaryDirectory() as folder:
            codes = commands(Path(folder), change, starts=3)
        print(
            f"gatescope compare, {100 * change:.0f} %, 3 starts: {sum(codes)} of {len(codes)} fail"
        )


if __name__ == "__main__":
    main()
