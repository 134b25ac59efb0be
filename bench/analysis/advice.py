"""Is the advice right? Logs with a planted skew: a placement that pays 8 %, one that pays nothing,
a log too short to tell, and one whose saving is just what matters (there the verdict is right as
often as its interval holds the truth). And does the interval of what a placement saves hold the
truth, for steady traffic and for traffic whose topics drift?

    uv run python bench/analysis/advice.py [--runs 20]

Verdicts are those of `gatescope advise LOGS --json`, on logs written as the recorder writes them.
A token draws its experts by weights; the truth is what the chosen placement saves of 20,000 more
steps of the same traffic.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from core import cli
from core.analysis import advice
from core.analysis.advice import CANNOT_TELL, DOES_NOT, PAYS, Advised, Pricing
from core.analysis.split import By
from core.analysis.traffic import Steps
from core.recorder.gatescope_recorder.gatelog import GateLogWriter, Header, Step
from core.stats.arrays import Floats, Ints

EXPERTS, LAYERS, RANKS, TOP_K = 32, 4, 4, 2


@dataclass(frozen=True, slots=True)
class Case:
    """`heat`: the first rank's experts' weight over the others'; `topics`: how many stretches of
    traffic, each a dataset with weights of its own that differ by `drift` (log scale)."""

    name: str
    heat: float
    steps: int
    want: str
    tokens: int = 256
    topics: int = 1
    drift: float = 0.0
    by: By = "time"


CASES = (
    Case("pays 8 %", 1.18, 1000, PAYS, tokens=1024),
    Case("pays 0", 1.0, 1000, DOES_NOT, tokens=1024),
    Case("pays 8 %, of 100 steps", 1.18, 100, CANNOT_TELL, tokens=1024),
    Case(
        "pays 8 %, 12 datasets", 1.18, 1200, PAYS, tokens=1024, topics=12, drift=0.02, by="dataset"
    ),
    Case("pays 0, 12 datasets", 1.0, 1200, DOES_NOT, tokens=1024, topics=12, by="dataset"),
    Case("pays what matters, 1 %", 1.06, 400, CANNOT_TELL, tokens=256),
)
COVERAGE = (
    Case("steady", 1.145, 2000, PAYS),
    Case("drifting, 40 topics", 1.145, 2000, PAYS, topics=40, drift=0.2),
    Case("drifting, 10 topics", 1.145, 2000, PAYS, topics=10, drift=0.2),
    Case("8 datasets", 1.145, 1600, PAYS, topics=8, drift=0.2, by="dataset"),
    Case("24 datasets", 1.145, 2400, PAYS, topics=24, drift=0.2, by="dataset"),
)


def weights(case: Case, draw: np.random.Generator) -> Floats:
    """[layers, experts] of one topic."""
    base = np.ones((LAYERS, EXPERTS))
    base[:, : EXPERTS // RANKS] = case.heat
    return np.asarray(base * np.exp(case.drift * draw.normal(size=base.shape)))


def traffic(case: Case, seed: int, steps: int | None = None) -> Steps:
    """Decode steps of a server whose experts lie on the ranks in order."""
    draw = np.random.default_rng([seed, len(case.name)])
    steps = steps or case.steps
    length = case.steps // case.topics
    parts = []
    for first in range(0, steps, length):
        chance = weights(case, draw)
        chance /= chance.sum(axis=1, keepdims=True)
        count = min(length, steps - first)
        pairs = np.full((count, LAYERS), case.tokens * TOP_K)
        parts.append(draw.multinomial(pairs, chance))
    whole = as_steps(np.concatenate(parts), case.tokens)
    return replace(whole, dataset=np.arange(steps) // length)


def as_steps(loads: Ints, tokens: int) -> Steps:
    steps = len(loads)
    home = tuple(np.repeat(np.arange(RANKS), EXPERTS // RANKS).tolist())
    start = np.arange(steps) * 20_000_000
    took = np.full(steps, 10_000_000)
    by_rank = loads @ np.eye(RANKS)[np.asarray(home)]
    every = np.full(steps, tokens)
    none = np.full(steps, -1)
    return Steps(loads, every, start, took, by_rank, home, tuple(range(LAYERS)), None, none)


def advised(steps: Steps, by: By) -> Advised:
    return advice.of_phase(
        "decode", steps, Pricing(), ranks=RANKS, spare=[RANKS], smallest=1.0, by=by
    )


def verdicts(case: Case, runs: int) -> Counter[str]:
    return Counter(said(traffic(case, seed), case.by) for seed in range(runs))


def said(steps: Steps, by: By) -> str:
    """The verdict of the command."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        written(steps, Path(folder))
        with contextlib.redirect_stdout(io.StringIO()) as out:
            cli.main(["advise", folder, "--json", "--split", by])
        return str(json.loads(out.getvalue())["verdict"])


def written(steps: Steps, folder: Path) -> None:
    """A gate log of decode steps."""
    header = Header("planted", "m", LAYERS, EXPERTS, TOP_K, ranks=RANKS, placement=steps.placement)
    log = GateLogWriter(folder / "dp0_pp0.gatelog", header)
    for index, counts in enumerate(steps.loads):
        tokens, start = int(steps.tokens[index]), int(steps.start_ns[index])
        took, label = int(steps.duration_ns[index]), f"{steps.dataset[index] + 1:03d}"
        log.append(Step(index, start, took, tokens, 0, tokens, 1, {label: tokens}, counts))
    log.close()


def covered(case: Case, runs: int, future_steps: int = 20_000) -> tuple[int, float, float]:
    """How many intervals hold the truth; mean of the estimates, and of the truths."""
    held, estimates, truths = 0, [], []
    for seed in range(runs):
        found = advised(traffic(case, seed), case.by)
        saved = found.advice.option().saved
        assert found.placement is not None
        future = traffic(case, 10_000 + seed, future_steps)
        now = advice._now(future, Pricing(), RANKS).sum()
        truth = 100 * (1 - advice._cost(found.placement, future, Pricing()).sum() / now)
        assert saved.value is not None
        assert saved.interval is not None
        held += saved.interval[0] <= truth <= saved.interval[1]
        estimates.append(saved.value)
        truths.append(float(truth))
    return held, float(np.mean(estimates)), float(np.mean(truths))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args().runs
    print("| planted | verdicts | right |\n|---|---|---|")
    for case in CASES:
        found = verdicts(case, runs)
        said = ", ".join(f"{verdict} {count}" for verdict, count in found.most_common())
        print(f"| {case.name} | {said} | {found[case.want]} of {runs} |")
    print(
        "\n| traffic | interval holds the truth | mean estimate | mean truth |\n|---|---|---|---|"
    )
    for case in COVERAGE:
        held, mean, truth = covered(case, 5 * runs)
        print(f"| {case.name} | {held} of {5 * runs} | {mean:.2f} % | {truth:.2f} % |")


if __name__ == "__main__":
    main()
