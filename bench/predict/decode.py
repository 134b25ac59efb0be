"""How well prefill foretells decode, on the built-in engine's trained model at temperature 1.

    python bench/predict/decode.py FOLDER

20 datasets that aim at excess CVs from 0.2 to 0.8, of half of the queries of each subject, are
recorded with 64 tokens an answer, 8 requests at once: the transfer is learned from them. 48 that
aim at 0.15 to 0.85, of the other half, are recorded as well, and their decode is predicted from
their exact prefill. Beside it, what the mean of the learned datasets' decode is off by, and how far
one could get: by another run of the same datasets with another seed, and by heads that are told the
answers (`answers`: learned from those of the first 20, with their exact loads).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
from scipy.stats import spearmanr

from bench.predict.predicted import against, halves, record
from core.builtin.tokenizer import PIECES
from core.prediction import aim, exact, heads, recorded, transfer
from core.prediction.builtin_stack import BuiltinStack
from core.prediction.heads import Heads
from core.prediction.recorded import Recorded
from core.routing.expected import Planned
from core.rundir import result
from core.workload import formats, predictor

CONFIG = """
[experiment]
datasets = "*.jsonl"
output_len = 64
max_concurrency = 8
warmup_requests = 0
shuffle = false
temperature = 1.0
[[backends]]
name = "one"
port = 0
tensor_parallel = 1
max_num_batched_tokens = 2048
"""


Answered = list[tuple[list[int], list[int]]]  # tokens of prompts, and of what was said after them


def answered(folder: Path, stack: BuiltinStack) -> list[Answered]:
    """By dataset; without the last token of an answer, which is not run."""
    tokens = {piece: token for token, piece in enumerate(PIECES)}
    found = []
    results = result.read_all(folder / "run" / "one" / "results_json").results
    for label in sorted(results):
        texts = formats.read(Path(str(results[label].dataset_path)), label).prompts
        pairs = zip(texts, results[label].generated_texts, strict=True)
        found.append([(stack.tokens(p.text), [tokens[c] for c in said][:-1]) for p, said in pairs])
    return found


def heads_of_answers(stack: BuiltinStack, datasets: list[Answered]) -> Heads:
    pairs = [pair for own in datasets for pair in own]
    whole = exact.route(stack, [prompt + answer for prompt, answer in pairs]).forecast()
    before = exact.route(stack, [prompt for prompt, _ in pairs]).forecast()
    ends = np.cumsum([len(own) for own in datasets])
    parts = tuple(
        tuple(range(end - len(own), end)) for end, own in zip(ends, datasets, strict=True)
    )
    answers = tuple((tuple(answer),) for _, answer in pairs)
    layers = tuple(range(stack.depth))
    of = Recorded(answers, whole.loads - before.loads, stack.top_k, layers, parts)
    return heads.learn(of, stack.gate_table())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    first, second = halves()
    stack = BuiltinStack()
    some = aim.aim(stack, first, np.linspace(0.2, 0.8, 20).tolist(), seed=1)
    others = aim.aim(stack, second, np.linspace(0.15, 0.85, 48).tolist())
    seen = record(folder / "learn", [one.texts for one in some], CONFIG, "decode")
    texts = [one.texts for one in others]
    measured = record(folder / "aimed", texts, CONFIG, "decode")
    again = record(folder / "again", texts, CONFIG.replace("[[", "seed = 1\n[["), "decode")
    of_answers = heads_of_answers(stack, answered(folder / "learn", stack))
    learned = transfer.learn(recorded.phases(folder / "learn" / "run"))
    layers = list(learned.layer_numbers)
    told = []
    for own in answered(folder / "aimed", stack):
        shares = of_answers.predict([answer for _, answer in own], spread=False).shares()
        told.append(learned.phase(shares, stack.top_k, Planned(decode=8)))
    found = []
    for one in others:
        forecast = exact.route(stack, [stack.tokens(text) for text in one.texts]).forecast()
        shares = learned.shares(forecast.shares(), layers)
        found.append(learned.phase(shares, forecast.top_k, Planned(decode=8)))
    scores = [predictor.predict(one.texts).score for one in others]
    shown = {
        "learned_datasets": len(learned.errors),
        "carried": learned.slope,
        "carried_interval": learned.slope_interval,
        "carried_by_layer": learned.transfer.slope.tolist(),
        "learned": seen,
        "measured": measured,
        **against(np.array(measured), found),
        "answers": against(np.array(measured), told),
        "other_seed": {
            "spearman": float(spearmanr(again, measured).statistic),
            "mean_error": float(abs(np.array(again) - measured).mean()),
        },
        "mean_error_of_the_learned_mean": float(abs(np.array(measured) - np.mean(seen)).mean()),
        "prefill_spearman": float(spearmanr([o.excess_cv for o in others], measured).statistic),
        "text_score_spearman": float(spearmanr(scores, measured).statistic),
    }
    print(json.dumps(shown, indent=1))


if __name__ == "__main__":
    main()
