"""Run directories and sweeps compared: cells paired by what they are, datasets by their texts; what
differed first, then each metric with an interval over server starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from core.analysis import comparand, gate
from core.analysis.comparand import Comparand, Facts
from core.analysis.gate import Gate, Ruling
from core.stats import comparison, starts
from core.stats.comparison import Comparison
from core.stats.starts import Side

GOODPUT = "request_goodput"
METRICS = (
    "mean_ttft_ms",
    "median_ttft_ms",
    "p99_ttft_ms",
    "mean_tpot_ms",
    "median_tpot_ms",
    "p99_tpot_ms",
    "mean_itl_ms",
    "p99_itl_ms",
    "mean_e2e_ms",
    "p99_e2e_ms",
    "output_throughput",
    "request_throughput",
    GOODPUT,
    "decode_step_ms",
    "j_per_output_token",
)
ROUTING = {
    "excess_cv": "excess CV of expert load",
    "busiest_rank.active_experts": "active experts of the busiest rank",
    "busiest_rank.work_over_fair": "busiest rank's work over a fair router's",
    "per_step_cv": "per-step CV of expert load",
    "rank_imbalance": "busiest rank's load, max/mean",
}
ENGINE, MODEL = "engine", "model.id"


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that is not the same on both sides. `kind`: "server", "load", "slo" or
    "ran"."""

    kind: str
    what: str
    before: str
    after: str

    @property
    def in_words(self) -> str:
        return f"{self.what}: {self.before} → {self.after}"


@dataclass(frozen=True, slots=True)
class Change:
    """A measure of the routing: means over datasets and starts of both sides, and the 95 %
    interval of their difference; None where there are no two starts each."""

    name: str
    before: float
    after: float
    interval: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of the results: means over datasets and starts of both sides, and what they differ
    by."""

    before: float
    after: float
    comparison: Comparison


@dataclass(frozen=True, slots=True)
class Pair:
    """Two cells that are compared. `refused`: why they are not; empty if they are."""

    before: Comparand
    after: Comparand
    differences: list[Difference]
    datasets: dict[str, str]  # of the earlier side → of the later side
    left_out: list[str]
    refused: str
    metrics: list[Metric]
    routing: list[Change]

    @property
    def name(self) -> str:
        if self.before.name == self.after.name:
            return self.before.name
        return f"{self.before.name} → {self.after.name}"

    def sides(self, metric: str) -> tuple[Side, Side]:
        return _sides(self.before, self.after, self.datasets, metric)


def pairs(
    before: Sequence[Comparand], after: Sequence[Comparand], margin_pct: float
) -> tuple[list[Pair], list[str]]:
    """Cells with the fewest differences are paired, each once; and the names of those left."""
    ways = sorted(
        (_distance(one, other), i, j)
        for i, one in enumerate(before)
        for j, other in enumerate(after)
    )
    taken: dict[int, int] = {}
    for _, i, j in ways:
        if i not in taken and j not in taken.values():
            taken[i] = j
    made = [_pair(before[i], after[j], margin_pct) for i, j in sorted(taken.items())]
    rest = [one.name for i, one in enumerate(before) if i not in taken]
    rest += [one.name for j, one in enumerate(after) if j not in taken.values()]
    return made, rest


def rulings(gates: Sequence[Gate], made: Sequence[Pair]) -> list[Ruling]:
    """Every gate's answer for every pair."""
    return [_ruling(limit, pair, len(made)) for limit in gates for pair in made]


def _ruling(limit: Gate, pair: Pair, count: int) -> Ruling:
    if pair.refused:
        return Ruling(limit, pair.name, "inconclusive", None, None, pair.refused)
    return gate.rule(limit, pair.name, pair.sides(limit.metric), count)


def _distance(one: Comparand, other: Comparand) -> tuple[int, bool]:
    """How much two cells differ in what they were asked to be; of equals, the name decides."""
    server = len(list(_differing("server", one.server, other.server)))
    load = len(list(_differing("load", one.load, other.load)))
    return server + load, one.name != other.name


def _pair(before: Comparand, after: Comparand, margin_pct: float) -> Pair:
    differences = [
        *_differing("server", before.server, after.server),
        *_differing("load", before.load, after.load),
        *_differing("slo", _objective(before), _objective(after)),
        *_differing("ran", before.ran, after.ran),
    ]
    datasets, left_out = _matched(before, after)
    refused = _refused(differences, datasets)
    metrics: list[Metric] = []
    routing: list[Change] = []
    if not refused:
        metrics = list(_compared(before, after, datasets, margin_pct))
        routing = list(_routed(before, after, datasets))
    return Pair(before, after, differences, datasets, left_out, refused, metrics, routing)


def _differing(kind: str, one: Facts, other: Facts) -> Iterator[Difference]:
    for key in dict.fromkeys([*one, *other]):
        if one.get(key) != other.get(key):
            yield Difference(kind, key, one.get(key, "unknown"), other.get(key, "unknown"))


def _objective(side: Comparand) -> Facts:
    limits = msgspec.structs.asdict(side.config.experiment.slo)
    return {name: "none" if value is None else f"{value:g}" for name, value in limits.items()}


def _matched(before: Comparand, after: Comparand) -> tuple[dict[str, str], list[str]]:
    """Datasets of both sides with the same texts; and a phrase for each that has no such one."""
    ours, theirs = (comparand.fingerprints(side.group) for side in (before, after))
    by_text = {text: name for name, text in reversed(theirs.items())}
    found = {}
    for name, text in ours.items():
        if text == theirs.get(name):
            found[name] = name
        elif text in by_text:
            found[name] = by_text[text]
    left = [name for name in ours if name not in found]
    left_out = [
        f"{name}: its prompts are not the same" if name in theirs else f"{name}: not in the later"
        for name in left
    ]
    others = [name for name in theirs if name not in found.values() and name not in left]
    return found, [*left_out, *(f"{name}: not in the earlier" for name in others)]


def _refused(differences: Sequence[Difference], datasets: Mapping[str, str]) -> str:
    """Why the two sides' times cannot be set against each other."""
    apart = [d for d in differences if d.what in (ENGINE, MODEL) or d.kind == "load"]
    if apart:
        return f"not comparable: {'; '.join(d.in_words for d in apart)}"
    return "" if datasets else "not comparable: they have no dataset in common"


def _sides(
    before: Comparand, after: Comparand, datasets: Mapping[str, str], metric: str
) -> tuple[Side, Side]:
    """Empty where the figure does not mean the same on both."""
    if metric == GOODPUT and _objective(before) != _objective(after):
        return {}, {}
    return (
        _named(before.group.by_start(metric), {name: name for name in datasets}),
        _named(after.group.by_start(metric), {theirs: ours for ours, theirs in datasets.items()}),
    )


def _named(side: Side, names: Mapping[str, str]) -> Side:
    """The datasets of `names` alone, under their new names."""
    kept = {
        start: {names[name]: run for name, run in own.items() if name in names}
        for start, own in side.items()
    }
    return {start: own for start, own in kept.items() if own}


def _compared(
    before: Comparand, after: Comparand, datasets: Mapping[str, str], margin_pct: float
) -> Iterator[Metric]:
    for metric in METRICS:
        sides = _sides(before, after, datasets, metric)
        means = starts.means(*sides) if all(sides) else None
        if means is not None:
            found = comparison.compare(metric, "before", "after", sides, margin_pct)
            yield Metric(float(np.mean(means.before)), float(np.mean(means.after)), found)


def _routed(before: Comparand, after: Comparand, datasets: Mapping[str, str]) -> Iterator[Change]:
    for measure, name in ROUTING.items():
        sides = _sides(before, after, datasets, measure)
        means = starts.means(*sides) if all(sides) else None
        if means is not None:
            interval = means.interval(comparison.LEVEL) if means.are_replicated else None
            yield Change(name, float(np.mean(means.before)), float(np.mean(means.after)), interval)
