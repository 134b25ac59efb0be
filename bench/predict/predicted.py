"""How well each mode predicts the excess CV² of prefill, on the built-in engine's trained model.

    python bench/predict/predicted.py FOLDER [--datasets 48]

Half of the queries of each subject are for learning: 20 datasets of 30, recorded on the built-in
engine, each prompt a step. What they foretell is judged on datasets of 30 prompts made from the
other half, each prompt a step:

- `aimed`: at excess CVs from 0.15 to 0.85, by `generate --target-excess`, and recorded as well.
  They are chosen by what is to be predicted.
- `mixed`: queries and prompts of 20 words, the words drawn at random, from 20 different ones to one
  and the same; how many of each is drawn too. Nothing is chosen by its routing.
- `ordinary`: 200 of queries alone, drawn at random.

The loads of the last two are those of `exact`, which are the recorded ones of the first. Coverage:
how often `run_interval` has the measured value; for exact, which knows it, how often
`excess_squared_interval` has the value of all queries that ordinary datasets were drawn from.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np
from scipy.stats import spearmanr

from core.prediction import aim, exact, heads, recorded
from core.prediction.builtin_stack import BuiltinStack
from core.prediction.heads import Heads
from core.routing import expected, repeats
from core.routing.expected import ExpectedPhase, Forecast, Planned
from core.rundir import result
from core.stats.arrays import Floats
from core.workload import generator, predictor

SIZE = 30
LEARNED = 20  # datasets
ORDINARY = 200
WORD = re.compile(r"[^\W\d_]{4,}")
CONFIG = """
[experiment]
datasets = "*.jsonl"
output_len = 1
max_concurrency = 1
warmup_requests = 0
shuffle = false
[[backends]]
name = "one"
port = 0
tensor_parallel = 1
max_num_batched_tokens = 2048
"""


def record(
    folder: Path, datasets: list[list[str]], config: str = CONFIG, of: str = "prefill"
) -> list[float]:
    """The measured excess CV² of a phase of each; `folder`/run has the run directory, which is used
    again where it is there."""
    if not folder.exists():
        _run(folder, datasets, config)
    results = result.read_all(folder / "run" / "one" / "results_json").results
    found = []
    for label in sorted(results):
        measured = results[label].measured_imbalance
        phase = measured and measured.phase(of)
        assert phase
        assert phase.excess_squared is not None
        found.append(phase.excess_squared)
    return found


def _run(folder: Path, datasets: list[list[str]], config: str) -> None:
    folder.mkdir(parents=True)
    for number, texts in enumerate(datasets, 1):
        rows = [json.dumps({"text": text}) + "\n" for text in texts]
        (folder / f"{number:03d}_0.jsonl").write_text("".join(rows))
    (folder / "experiments.toml").write_text(config)
    command = [sys.executable, "-m", "core.cli", "--batch", "--engine", "builtin", "--out", "run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=folder, env=environment, check=True, stderr=subprocess.DEVNULL)


def judged(learned: Heads, prompts: list[list[list[int]]], known: list[Forecast]) -> dict[str, Any]:
    """What table and calibrated say of datasets whose loads are `known`."""
    truth = squared([phase_of(own, f) for own, f in zip(prompts, known, strict=True)])
    found: dict[str, Any] = {"measured": truth.tolist()}
    for mode, spread in (("table", False), ("calibrated", True)):
        own = [phase_of(one, learned.predict(one, spread=spread)) for one in prompts]
        found[mode] = against(truth, own)
    return found


def phase_of(prompts: list[list[int]], forecast: Forecast) -> ExpectedPhase:
    return expected.prefill(replace(forecast, repeats=repeats.of(prompts)), Planned())


def squared(found: list[ExpectedPhase]) -> Floats:
    return np.array([phase.excess_squared for phase in found], np.float64)


def against(measured: Floats, found: list[ExpectedPhase]) -> dict[str, float]:
    values = squared(found)
    result = {
        "spearman": float(spearmanr(values, measured).statistic),
        "slope": float(np.polyfit(values, measured, 1)[0]),
        "mean_error": float(abs(values - measured).mean()),
        "bias": float((values - measured).mean()),
    }
    if found[0].run_interval:
        ends = np.array([phase.run_interval for phase in found])
        result["coverage"] = float(((ends[:, 0] <= measured) & (measured <= ends[:, 1])).mean())
    return result


def mixed(texts: list[str], count: int) -> list[list[str]]:
    rng = random.Random(0)
    words = sorted({word.lower() for text in texts for word in WORD.findall(text)})
    found = []
    for _ in range(count):
        kinds, queries = rng.choice((20, 8, 4, 2, 1)), rng.randrange(SIZE + 1)
        own = rng.sample(texts, queries)
        for _ in range(SIZE - queries):
            some = rng.sample(words, kinds)
            own.append(" ".join((some * 20)[:20]))
        found.append(own)
    return found


def exact_coverage(true: Forecast, prompts: list[list[int]]) -> float:
    """Of all queries' excess², at the draw's repeats; drawn with replacement."""
    rng, inside = np.random.default_rng(1), []
    for _ in range(ORDINARY):
        draw = rng.integers(0, len(prompts), SIZE)
        alike = repeats.of([prompts[place] for place in draw])
        found = expected.prefill(replace(true.of(draw), repeats=alike), Planned())
        value = float(replace(true, repeats=alike).excess_squared().mean())
        assert found.excess_squared_interval
        low, high = found.excess_squared_interval
        inside.append(low <= value <= high)
    return float(np.mean(inside))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--datasets", type=int, default=48)
    arguments = parser.parse_args()
    queries = generator.distinct(generator.load_queries(ROOT / "datasets" / "domain_queries.json"))
    first = {domain: texts[::2] for domain, texts in queries.items()}
    second = {domain: texts[1::2] for domain, texts in queries.items()}
    stack, rng = BuiltinStack(), np.random.default_rng(0)
    pool = [text for texts in first.values() for text in texts]
    taken = rng.choice(len(pool), (LEARNED, SIZE), replace=False)
    record(arguments.folder / "learn", [[pool[place] for place in row] for row in taken])
    read = recorded.read(arguments.folder / "learn" / "run", stack.tokens)
    learned = heads.learn(read, stack.gate_table())
    targets = np.linspace(0.15, 0.85, arguments.datasets).tolist()
    aimed = [one.texts for one in aim.aim(stack, second, targets)]
    measured = record(arguments.folder / "aimed", aimed)
    texts = [text for own in second.values() for text in own]
    prompts = [stack.tokens(text) for text in texts]
    true = exact.route(stack, prompts).forecast()
    draws = [rng.choice(len(texts), SIZE, replace=False) for _ in range(ORDINARY)]
    found: dict[str, Any] = {"learned_steps": len(read.prompts), "wider": learned.wider()}
    for name, own in (("aimed", aimed), ("mixed", mixed(texts, arguments.datasets))):
        of = [[stack.tokens(text) for text in some] for some in own]
        known = [exact.route(stack, some).forecast() for some in of]
        found[name] = judged(learned, of, known)
        scores = [predictor.predict(some).score for some in own]
        found[name]["text_score_spearman"] = float(
            spearmanr(scores, found[name]["measured"]).statistic
        )
    off = np.array(measured) - found["aimed"]["measured"]
    found["aimed"]["exact_largest_error"] = float(abs(off).max())
    found["ordinary"] = judged(
        learned, [[prompts[p] for p in draw] for draw in draws], [true.of(draw) for draw in draws]
    )
    found["exact_coverage_of_all_queries"] = exact_coverage(true, prompts)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
