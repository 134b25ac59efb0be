"""A published run directory, read anew with a price list of its kernel.

    uv run python bench/backends/repriced.py RUN_DIR BACKEND PRICE_LIST [OTHER_RUN_DIR]

A run's median decode step against a + b · requests + c · price, and against lines in CV, max/mean
and active experts of the busiest rank, each condition (dose, pattern and requests, with its
repeats) left out in turn. Then the whole cost model's view. With OTHER_RUN_DIR: mean decode steps
of another server's natural runs, predicted by this one's, nothing refitted; with vLLM's usual CUDA
graphs in the header, which logs of that day lack, so that padding rows count.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from core import files
from core.analysis import cost_model, cost_sentences, routing_cost, step_sample
from core.analysis.cost_model import CostModel
from core.analysis.step_sample import StepSample
from core.experiment import dose, plan
from core.recorder.gatescope_recorder.kernel import Kernel
from core.routing import price
from core.routing.folder import GateFolder, starts
from core.routing.price import PriceList, Prices
from core.stats.arrays import Floats

GRAPHS = (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16))  # vLLM 0.25.1 for up to 256 requests


def r2(y: Floats, guess: Floats) -> float:
    return 1 - float(((y - guess) ** 2).sum() / ((y - y.mean()) ** 2).sum())


def by_run(of: StepSample, values: Floats, mean: bool = False) -> Floats:
    middle = np.mean if mean else np.median
    return np.array([middle(values[of["run"] == run]) for run in np.unique(of["run"])])


def condition(label: str) -> str:
    """The run's dataset and dose, without its repeat."""
    return f"{plan.dataset_of(label)} {dose.of_label(label) or 'natural'}"


def left_out(design: Floats, y: Floats, conditions: list[str]) -> Floats:
    guess = np.zeros(len(y))
    for name in set(conditions):
        out = np.array([one == name for one in conditions])
        guess[out] = design[out] @ np.linalg.lstsq(design[~out], y[~out], rcond=None)[0]
    return guess


def lines(of: StepSample) -> None:
    labels = [of.labels[int(run)] for run in np.unique(of["run"])]
    conditions = [condition(label) for label in labels]
    y, tokens = by_run(of, of["duration_us"]), by_run(of, of["tokens"])
    ratio = 1 + by_run(of, of["extra"]) / by_run(of, of["mean_load"])
    measures = {
        "price": by_run(of, of["price_us"]),
        "CV": by_run(of, of["cv"]),
        "max/mean": ratio,
        "active experts": by_run(of, of["active"]),
    }
    for name, x in measures.items():
        design = np.column_stack([np.ones(len(y)), tokens, x])
        guess = left_out(design, y, conditions)
        error = 100 * abs(guess / y - 1)
        within = ", ".join(
            f"{size:.0f}: {r2(y[tokens == size], guess[tokens == size]):.3f}"
            for size in np.unique(tokens)
        )
        print(
            f"requests and {name:14} R² {r2(y, guess):.3f}, mean error {error.mean():.2f} %, worst"
            f" {error.max():.1f} %; within a size {within}"
        )
        if name != "price":
            continue
        for one in sorted(set(conditions)):
            own = np.array([name == one for name in conditions])
            ms, said = y[own].mean() / 1e3, guess[own].mean() / 1e3
            print(f"  {one:32} {ms:6.2f} ms, left out {said:6.2f} ({said / ms - 1:+.1%})")


def carried(model: CostModel, folder: Path, backend: str, prices: Prices) -> None:
    """Another server's natural runs."""
    log = next(iter(GateFolder(starts(folder / backend)[0]).blocks()))
    base = log.kernel or Kernel("TRITON")
    step_sample._padding = lambda log, own: np.array(
        [replace(base, graphs=GRAPHS).padding(int(tokens)) for tokens in log.tokens]
    )
    of = step_sample.of_backend(folder, backend, prices=prices).of_phase("decode")
    y, guess = by_run(of, of["duration_us"], True), by_run(of, model.predict_us(of), True)
    cv = by_run(of, of["cv"], True)
    for run, took, said in zip(np.unique(of["run"]).astype(int), y, guess, strict=True):
        print(f"  {of.labels[run]}: {took / 1e3:.2f} ms, predicted {said / 1e3:.2f}")
    offset = float(np.median(y - guess))
    line = np.column_stack([np.ones(len(y)), cv])
    own = line @ np.linalg.lstsq(line, y, rcond=None)[0]
    print(
        f"{folder}: R² {r2(y, guess):.3f}; with one offset of {offset / 1e3:+.2f} ms"
        f" {r2(y, guess + offset):.3f}, mean error {100 * abs((guess + offset) / y - 1).mean():.2f}"
        f" %; a line in CV, fitted to these very runs {r2(y, own):.3f}"
    )


def main() -> None:
    if len(sys.argv) not in (4, 5):
        raise SystemExit(__doc__)
    folder, backend, prices = Path(sys.argv[1]), sys.argv[2], price.fit(_listed(sys.argv[3]))
    natural, every = (
        step_sample.of_backend(folder, backend, prices=prices, forced=forced)
        for forced in (False, True)
    )
    print(f"{backend}, {len(every.labels)} runs, {prices.kernel.source} tiling")
    lines(every.of_phase("decode"))
    whole = routing_cost.of_backend(backend, natural, every, None, prices)
    print("\n".join(cost_sentences.sentences_of(whole)))
    if len(sys.argv) == 5:
        carried(cost_model.fit(every, "decode"), Path(sys.argv[4]), backend, prices)


def _listed(file: str) -> PriceList:
    return files.read(Path(file), PriceList)


if __name__ == "__main__":
    main()
