"""How well prefill foretells decode, on the built-in engine's trained model at temperature 1.

    python bench/predict/decode.py FOLDER

20 datasets that aim at excess CVs from 0.2 to 0.8, of half of the queries of each subject, are
recorded with 64 tokens an answer, 8 requests at once: the transfer is learned from them. 48 that
aim at 0.15 to 0.85, of the other half, are recorded as well, and their decode is predicted from
their exact prefill. Beside it, what the mean of the learned datasets' decode is off by.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.predict.predicted import ROOT, against, record
from core.prediction import aim, exact, recorded, transfer
from core.prediction.builtin_stack import BuiltinStack
from core.routing.expected import Planned
from core.workload import generator, predictor

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    queries = generator.distinct(generator.load_queries(ROOT / "datasets" / "domain_queries.json"))
    first = {domain: texts[::2] for domain, texts in queries.items()}
    second = {domain: texts[1::2] for domain, texts in queries.items()}
    stack = BuiltinStack()
    some = aim.aim(stack, first, np.linspace(0.2, 0.8, 20).tolist(), seed=1)
    others = aim.aim(stack, second, np.linspace(0.15, 0.85, 48).tolist())
    seen = record(folder / "learn", [one.texts for one in some], CONFIG, "decode")
    measured = record(folder / "aimed", [one.texts for one in others], CONFIG, "decode")
    learned = transfer.learn(recorded.phases(folder / "learn" / "run"))
    layers = list(learned.layer_numbers)
    found = []
    for one in others:
        forecast = exact.route(stack, [stack.tokens(text) for text in one.texts]).forecast()
        shares = learned.shares(forecast.shares(), layers)
        found.append(learned.phase(shares, forecast.top_k, Planned(decode=8)))
    scores = [predictor.predict(one.texts).score for one in others]
    result = {
        "learned_datasets": len(learned.errors),
        "carried": learned.slope,
        "carried_interval": learned.slope_interval,
        "carried_by_layer": learned.transfer.slope.tolist(),
        "learned": seen,
        "measured": measured,
        **against(np.array(measured), found),
        "mean_error_of_the_learned_mean": float(abs(np.array(measured) - np.mean(seen)).mean()),
        "prefill_spearman": float(spearmanr([o.excess_cv for o in others], measured).statistic),
        "text_score_spearman": float(spearmanr(scores, measured).statistic),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
