"""How well each mode predicts the excess CV² of prefill, on the built-in engine's trained model.

    python bench/predict/predicted.py FOLDER [--datasets 48]

Half of the queries of each subject are for learning: 20 datasets of 30, recorded on the built-in
engine, each prompt a step. The other half make `--datasets` datasets that aim at excess CVs from
0.15 to 0.85 (tokens taken as unalike), recorded as well. Their measured excess CV², signed, with
the floor that allows for tokens that repeat, is set against what exact, table and calibrated
predict, and against the score of the text. Coverage: of these datasets, and of 200
ordinary ones, 30 queries drawn from the second half at random, whose loads exact gives.
"""

from __future__ import annotations

import argparse
import json
import os
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
from core.workload import generator, predictor

SIZE = 30
LEARNED = 20  # datasets
ORDINARY = 200
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


def record(folder: Path, datasets: list[list[str]]) -> list[float]:
    """The measured excess CV² of prefill of each, where each prompt is a step; `folder`/run has the
    run directory, which is used again where it is there."""
    if not folder.exists():
        _run(folder, datasets)
    results = result.read_all(folder / "run" / "one" / "results_json").results
    found = []
    for label in sorted(results):
        measured = results[label].measured_imbalance
        assert measured
        assert measured.prefill
        assert measured.prefill.excess_squared is not None
        found.append(measured.prefill.excess_squared)
    return found


def _run(folder: Path, datasets: list[list[str]]) -> None:
    folder.mkdir(parents=True)
    for number, texts in enumerate(datasets, 1):
        rows = [json.dumps({"text": text}) + "\n" for text in texts]
        (folder / f"{number:03d}_0.jsonl").write_text("".join(rows))
    (folder / "experiments.toml").write_text(CONFIG)
    command = [sys.executable, "-m", "core.cli", "--batch", "--engine", "builtin", "--out", "run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=folder, env=environment, check=True, stderr=subprocess.DEVNULL)


def predicted(
    forecasts: list[Forecast], errors: np.typing.NDArray[np.float64] | None = None
) -> list[ExpectedPhase]:
    return [expected.prefill(forecast, Planned(), errors) for forecast in forecasts]


def against(measured: list[float], found: list[ExpectedPhase]) -> dict[str, float]:
    values = squared(found)
    truth = np.array(measured)
    slope = np.polyfit(values, truth, 1)[0]
    return {
        "spearman": float(spearmanr(values, truth).statistic),
        "slope": float(slope),
        "mean_error": float(abs(values - truth).mean()),
        "bias": float((values - truth).mean()),
        "coverage": covered(measured, found),
    }


def squared(found: list[ExpectedPhase]) -> np.typing.NDArray[np.float64]:
    return np.array([phase.excess_squared for phase in found], np.float64)


def covered(measured: list[float], found: list[ExpectedPhase]) -> float:
    inside = [
        phase.excess_squared_interval is not None
        and phase.excess_squared_interval[0] <= value <= phase.excess_squared_interval[1]
        for value, phase in zip(measured, found, strict=True)
    ]
    return float(np.mean(inside))


def ordinary(stack: BuiltinStack, learned: Heads, texts: list[str]) -> dict[str, float]:
    """Coverage on datasets drawn at random, and how often the interval of exact holds the excess
    CV² of all texts that they were drawn from, at the floor of the draw."""
    prompts = [stack.tokens(text) for text in texts]
    true, heads_say = exact.route(stack, prompts).forecast(), learned.predict(prompts)
    rng = np.random.default_rng(0)
    draws = [rng.choice(len(texts), SIZE, replace=False) for _ in range(ORDINARY)]
    alike = [repeats.of([prompts[place] for place in draw]) for draw in draws]
    known, calibrated = (
        predicted([replace(of.of(d), repeats=r) for d, r in zip(draws, alike, strict=True)], errors)
        for of, errors in ((true, None), (heads_say, learned.errors()))
    )
    measured = squared(known).tolist()
    all_texts = [float(replace(true, repeats=r).excess_squared().mean()) for r in alike]
    return {
        "calibrated_coverage": covered(measured, calibrated),
        "calibrated_mean_error": against(measured, calibrated)["mean_error"],
        "calibrated_spearman": against(measured, calibrated)["spearman"],
        "exact_coverage_of_all_texts": covered(all_texts, known),
    }


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
    made = [one.texts for one in aim.aim(stack, second, targets)]
    measured = record(arguments.folder / "aimed", made)
    prompts = [[stack.tokens(text) for text in texts] for texts in made]
    known = [exact.route(stack, own).forecast() for own in prompts]
    forecasts = {
        "exact": (known, None),
        "table": (
            [learned.predict(own, spread=False) for own in prompts],
            learned.errors(spread=False),
        ),
        "calibrated": ([learned.predict(own) for own in prompts], learned.errors()),
    }
    alike = [repeats.of(own) for own in prompts]
    by_mode = {
        mode: predicted([replace(f, repeats=r) for f, r in zip(of, alike, strict=True)], errors)
        for mode, (of, errors) in forecasts.items()
    }
    found: dict[str, Any] = {
        "datasets": len(made),
        "learned_steps": len(read.prompts),
        "measured": measured,
        **{mode: against(measured, phases) for mode, phases in by_mode.items()},
        "shown": {mode: sum(p.excess_cv is not None for p in by_mode[mode]) for mode in by_mode},
        "score_of_text": [predictor.predict(texts).score for texts in made],
        "text_score_spearman": float(
            spearmanr([predictor.predict(texts).score for texts in made], measured).statistic
        ),
        "ordinary": ordinary(stack, learned, [t for texts in second.values() for t in texts]),
    }
    natural = [place for place, target in enumerate(targets) if target < 0.4]
    for mode in ("table", "calibrated"):
        own = [by_mode[mode][place] for place in natural]
        found[f"{mode}_aimed_below_0.4"] = against([measured[place] for place in natural], own)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
