"""How well each mode predicts the excess CV² of prefill, on the built-in engine's trained model.

    python bench/predict/predicted.py FOLDER

Half of the queries of each subject are for learning, the other half is judged. Datasets have 30
prompts, each prompt a step, and are made in three ways:

- `aimed`: at excess CVs from 0.15 to 0.85, by `generate --target-excess`: chosen by what is to be
  predicted. 48 of them are recorded on the built-in engine.
- `mixed`: queries and prompts of 20 words, the words drawn at random, from 20 different ones to one
  and the same; how many of each is drawn too. Nothing is chosen by its routing.
- `ordinary`: queries alone, drawn at random.

Each kind is judged on 100 datasets (aimed: the 48), by heads learned from 40 of its own kind, and
by heads learned from 14 of each kind. The loads of all but the recorded ones are those of `exact`,
which are the recorded ones (`exact_largest_error`). No prompt is learned from and judged. Coverage:
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

from core.prediction import aim, exact, heads
from core.prediction.builtin_stack import BuiltinStack
from core.prediction.heads import Heads
from core.prediction.recorded import Recorded
from core.routing import expected, repeats
from core.routing.expected import ExpectedPhase, Forecast, Planned
from core.rundir import result
from core.stats.arrays import Floats
from core.workload import generator, predictor
from core.workload.strategies import Queries

SIZE = 30
LEARNED, EACH = 40, 14  # datasets of a kind, and of each where all kinds are learned from
RECORDED, JUDGED = 48, 100
KINDS = ("aimed", "mixed", "ordinary")
Texts = list[list[str]]
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


def halves() -> tuple[Queries, Queries]:
    """The queries of each subject: every other one, and the rest."""
    queries = generator.distinct(generator.load_queries(ROOT / "datasets" / "domain_queries.json"))
    first = {domain: texts[::2] for domain, texts in queries.items()}
    return first, {domain: texts[1::2] for domain, texts in queries.items()}


def record(folder: Path, datasets: Texts, config: str = CONFIG, of: str = "prefill") -> list[float]:
    """The measured excess CV² of a phase of each; `folder`/run has the run directory, which is used
    again where it is there."""
    if not folder.exists():
        _run(folder, datasets, config)
    for number, texts in enumerate(datasets, 1):
        lines = (folder / f"{number:03d}_0.jsonl").read_text().splitlines()
        assert [json.loads(line)["text"] for line in lines] == texts
    results = result.read_all(folder / "run" / "one" / "results_json").results
    found = []
    for label in sorted(results):
        measured = results[label].measured_imbalance
        phase = measured and measured.phase(of)
        assert phase
        assert phase.excess_squared is not None
        found.append(phase.excess_squared)
    return found


def _run(folder: Path, datasets: Texts, config: str) -> None:
    folder.mkdir(parents=True)
    for number, texts in enumerate(datasets, 1):
        rows = [json.dumps({"text": text}) + "\n" for text in texts]
        (folder / f"{number:03d}_0.jsonl").write_text("".join(rows))
    (folder / "experiments.toml").write_text(config)
    command = [sys.executable, "-m", "core.cli", "--batch", "--engine", "builtin", "--out", "run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=folder, env=environment, check=True, stderr=subprocess.DEVNULL)


class Loads:
    """The exact loads of prompts, each routed once."""

    def __init__(self) -> None:
        self.stack, self._known = BuiltinStack(), dict[str, Floats]()

    def of(self, texts: list[str]) -> Floats:
        """[prompts, layers, experts]."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            routed = exact.route(self.stack, [self.stack.tokens(text) for text in new])
            self._known |= zip(new, routed.forecast().loads, strict=True)
        return np.array([self._known[text] for text in texts])

    def heads(self, datasets: Texts) -> Heads:
        """Learned from these, as `recorded.read` would have them, each prompt a step."""
        texts = list(dict.fromkeys(text for own in datasets for text in own))
        at = {text: place for place, text in enumerate(texts)}
        prompts = tuple((tuple(self.stack.tokens(text)),) for text in texts)
        parts = tuple(tuple(dict.fromkeys(at[text] for text in own)) for own in datasets)
        layers = tuple(range(self.stack.depth))
        of = Recorded(prompts, self.of(texts), self.stack.top_k, layers, parts)
        return heads.learn(of, self.stack.gate_table())


def judged(learned: Heads, loads: Loads, datasets: Texts) -> dict[str, Any]:
    """What table and calibrated say of datasets that share no prompt with the learned ones."""
    known = {prompt for step in learned.recorded.prompts for prompt in step}
    prompts = [[loads.stack.tokens(text) for text in own] for own in datasets]
    fresh = [place for place, own in enumerate(prompts) if known.isdisjoint(map(tuple, own))]
    own = [prompts[place] for place in fresh]
    calibrated = [learned.predict(one) for one in own]
    pairs = zip(calibrated, fresh, strict=True)
    exact_ones = [replace(f, loads=loads.of(datasets[p]), doubt=None) for f, p in pairs]
    truth = squared(list(map(phase_of, own, exact_ones)))
    table = [replace(one, doubt=None) for one in calibrated]
    scores = [predictor.predict(datasets[place]).score for place in fresh]
    return {
        "datasets": len(fresh),
        "measured": truth.tolist(),
        "table": against(truth, list(map(phase_of, own, table))),
        "calibrated": against(truth, list(map(phase_of, own, calibrated))),
        "text_score_spearman": float(spearmanr(scores, truth).statistic),
    }


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


def made(
    loads: Loads, queries: Queries, counts: tuple[int, int, int], seed: int
) -> dict[str, Texts]:
    """Datasets of each kind."""
    texts = [text for own in queries.values() for text in own]
    targets = np.linspace(0.15, 0.85, counts[0]).tolist()
    aimed = [one.texts for one in aim.aim(loads.stack, queries, targets, seed=seed)]
    rng = random.Random(seed)
    ordinary = [rng.sample(texts, SIZE) for _ in range(counts[2])]
    return dict(zip(KINDS, (aimed, mixed(texts, counts[1], rng), ordinary), strict=True))


def mixed(texts: list[str], count: int, rng: random.Random) -> Texts:
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


def exact_coverage(loads: Loads, texts: list[str]) -> float:
    """Of all queries' excess², at the draw's repeats; drawn with replacement."""
    prompts = [loads.stack.tokens(text) for text in texts]
    tokens = np.array(list(map(len, prompts)))
    layers = tuple(range(loads.stack.depth))
    true = Forecast(tokens, loads.of(texts), loads.stack.top_k, layers)
    rng, inside = np.random.default_rng(1), []
    for _ in range(2 * JUDGED):
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
    folder, loads = parser.parse_args().folder, Loads()
    first, second = halves()
    learned = made(loads, first, (LEARNED, LEARNED, LEARNED), seed=1)
    others = made(loads, second, (RECORDED, JUDGED, JUDGED), seed=0)
    some = {kind: learned[kind][:: -(-LEARNED // EACH)] for kind in KINDS}
    of_all = loads.heads([own for kind in KINDS for own in some[kind]])
    found: dict[str, Any] = {"learned": LEARNED, "learned_of_each": len(some["aimed"])}
    for kind in KINDS:
        found[kind] = judged(loads.heads(learned[kind]), loads, others[kind])
        found[kind]["of_all"] = judged(of_all, loads, others[kind])["calibrated"]
    measured = np.array(record(folder / "aimed", others["aimed"]))
    known = [exact_of(loads, own) for own in others["aimed"]]
    found["exact_largest_error"] = float(abs(measured - squared(known)).max())
    texts = [text for own in second.values() for text in own]
    found["exact_coverage_of_all_queries"] = exact_coverage(loads, texts)
    print(json.dumps(found, indent=1))


def exact_of(loads: Loads, texts: list[str]) -> ExpectedPhase:
    prompts = [loads.stack.tokens(text) for text in texts]
    return phase_of(prompts, exact.route(loads.stack, prompts).forecast())


if __name__ == "__main__":
    main()
