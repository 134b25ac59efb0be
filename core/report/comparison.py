"""Run directories compared, as Markdown for a terminal or a CI's summary, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from core.analysis.across import Change, Difference, Metric, Pair
from core.analysis.gate import Ruling
from core.analysis.peer import PeerRow
from core.plots import labels
from core.report.document import heading, items, markdown, table, text
from core.stats.estimate import Estimate
from core.terminal import shown

KINDS = {
    "server": "asked of the server",
    "load": "load",
    "slo": "objective",
    "ran": "versions and machine",
}

METRIC_HEAD = ("metric", "before", "after", "change", "95 % interval", "verdict", "to settle it")
ROUTING_HEAD = ("routing", "before", "after", "difference, 95 % interval")


@dataclass(frozen=True, slots=True)
class Compared:
    """One later side against the first: their pairs, the cells without one, the gates, and what the
    rules of validity call invalid on either side."""

    before: str
    after: str
    pairs: list[Pair]
    unpaired: list[str]
    rulings: list[Ruling]
    invalid: list[str]


def page(found: Sequence[Compared], peers: Sequence[PeerRow]) -> str:
    parts = [part for one in found for part in _compared(one)]
    return markdown([*parts, *_peers(peers)])


def as_json(found: Sequence[Compared], peers: Sequence[PeerRow]) -> dict[str, Any]:
    return {"comparisons": [_json(one) for one in found], "also": list(peers)}


# --- Markdown ---


def _compared(one: Compared) -> Iterator[str]:
    yield heading(f"{one.after} against {one.before}", 1)
    if one.invalid:
        yield heading("Invalid")
        yield items(one.invalid)
    if one.rulings:
        yield heading("Gates")
        yield items([ruling.in_words for ruling in one.rulings])
    everywhere = _everywhere(one.pairs)
    yield heading("What differs")
    yield _differences(everywhere) if everywhere else "Nothing that is known, in all pairs."
    for pair in one.pairs:
        yield from _pair(pair, everywhere)
    if one.unpaired:
        yield f"Without a counterpart: {text(', '.join(one.unpaired))}"


def _everywhere(pairs: Sequence[Pair]) -> list[Difference]:
    """The differences that every pair has."""
    first = pairs[0].differences if pairs else []
    return [d for d in first if all(d in pair.differences for pair in pairs)]


def _differences(found: Sequence[Difference]) -> str:
    return items([f"{KINDS[one.kind]}: {one.in_words}" for one in found])


def _pair(pair: Pair, everywhere: Sequence[Difference]) -> Iterator[str]:
    yield heading(pair.name)
    if own := [one for one in pair.differences if one not in everywhere]:
        yield _differences(own)
    if pair.refused:
        yield text(pair.refused)
        return
    yield text(_rests_on(pair))
    yield table(METRIC_HEAD, [_row(one) for one in pair.metrics])
    if pair.routing:
        yield table(ROUTING_HEAD, [_routing(one) for one in pair.routing])
    if pair.left_out:
        yield f"Datasets left out: {text('; '.join(pair.left_out))}"


def _rests_on(pair: Pair) -> str:
    """What the intervals rest on, or why there are none."""
    known = (m.comparison for m in pair.metrics if m.comparison.ratio.value is not None)
    one = next(known, None)
    if one is None:
        return "No metric is known on both sides."
    return one.ratio.reason or f"Intervals rest on server starts: {one.unit}."


def _row(metric: Metric) -> tuple[str, ...]:
    one = metric.comparison
    change = "–" if one.percent is None else f"{one.percent:+.1f} %"
    verdict = one.verdict_in_words if one.ratio.value is not None else one.ratio.reason or "–"
    values = (f"{metric.before:.4g}", f"{metric.after:.4g}")
    return labels.metric(one.metric), *values, change, one.shown_interval, verdict, one.to_settle


def _routing(one: Change) -> tuple[str, ...]:
    difference = Estimate(one.after - one.before, one.interval).shown("+.3g")
    return one.name, f"{one.before:.3g}", f"{one.after:.3g}", difference


def _peers(peers: Sequence[PeerRow]) -> Iterator[str]:
    if not peers:
        return
    yield heading("Other clients' results", 1)
    yield "One run each, without an interval: no server start is known of them."
    metrics = list(dict.fromkeys(key for row in peers for key in row.figures))
    rows = [
        [row.tool, row.name, *(shown(row.figures.get(key), ".4g") for key in metrics)]
        for row in peers
    ]
    yield table(["tool", "result", *metrics], rows)
    notes = dict.fromkeys(f"{row.tool}: {note}" for row in peers for note in row.notes)
    yield items(list(notes))


# --- JSON ---


def _json(one: Compared) -> dict[str, Any]:
    return {
        "before": one.before,
        "after": one.after,
        "gates": [
            {
                "gate": ruling.gate.text,
                "pair": ruling.pair,
                "answer": ruling.answer,
                "change_pct": ruling.change_pct,
                "interval_pct": ruling.interval_pct,
                "reason": ruling.reason or None,
            }
            for ruling in one.rulings
        ],
        "pairs": [_json_pair(pair) for pair in one.pairs],
        "unpaired": one.unpaired,
        "invalid": one.invalid,
    }


def _json_pair(pair: Pair) -> dict[str, Any]:
    return {
        "before": pair.before.name,
        "after": pair.after.name,
        "differences": pair.differences,
        "datasets": pair.datasets,
        "left_out": pair.left_out,
        "not_comparable": pair.refused or None,
        "metrics": [
            {"before": m.before, "after": m.after, **msgspec.structs.asdict(m.comparison)}
            for m in pair.metrics
        ],
        "routing": pair.routing,
    }
