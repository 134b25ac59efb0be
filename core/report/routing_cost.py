"""The report's section on what routing costs a step: the model, each dataset over a fair router,
the edges of tiles, and other placements of the experts."""

from __future__ import annotations

from collections.abc import Sequence

from core.analysis import cost_sentences as cost
from core.analysis.routing_cost import BackendCost, RoutingCost
from core.report.document import heading, items, table, text

METHOD = (
    "The model is fitted to single decode steps; its work is that of the busiest rank, summed over"
    " layers. A fair router gives each token any top-k experts, all equally probable; it is priced"
    " on the very batches of the dataset. Intervals rest on blocks of a dataset's steps and on the"
    " model's own intervals (over runs, or blocks where runs are few): they say what these"
    " requests would cost again, not what others would."
)
WHAT_IF = (
    "Placements are made from half of the datasets and judged on the others, in both directions (of"
    " one dataset: halves of its time). EPLB has one spare slot a GPU; hierarchical takes 2 nodes."
    " Savings are by the cost model, for the number of ranks that ran."
)
HEAD = [
    "backend",
    "dataset",
    "steps",
    "over a fair router",
    "% of a step",
    "waiting",
    "weights",
    "padding",
]


def parts(costs: Sequence[BackendCost], unread: Sequence[str]) -> list[str]:
    """The section in Markdown."""
    sentences = [*unread, *(line for one in costs for line in cost.sentences_of(one))]
    rows = [_row(one.backend, found) for one in costs for found in one.datasets]
    rivals = [
        table(
            [f"{one.backend}: {cost.QUALITY_HEAD[0]}", *cost.QUALITY_HEAD[1:]],
            cost.quality_rows(one.model),
        )
        for one in costs
        if one.model.qualities
    ]
    tables = [table(HEAD, rows)] if rows else []
    placements = [_placements(one) for one in costs if one.placements]
    head = heading("What routing costs a decode step")
    return [
        head,
        items(sentences or ["No gate log of natural routing."]),
        *tables,
        *rivals,
        *placements,
        text(f"{METHOD} {WHAT_IF}"),
    ]


def _row(backend: str, found: RoutingCost) -> list[str]:
    parts = (found.waiting, found.weights, found.padding)
    return [
        backend,
        found.dataset,
        str(found.steps),
        cost.micros(found.over_fair, "+"),
        found.share.shown("+.2f"),
        *("–" if part is None else cost.micros(part, "+") for part in parts),
    ]


def _placements(one: BackendCost) -> str:
    head = [f"{one.backend}: GPUs", "placement", "rank max/mean", "decode step saved"]
    rows = [
        [
            str(found.ranks),
            found.name,
            f"{found.ratio:.3f}",
            cost.micros(found.saved, "+") if found.saved else "–",
        ]
        for found in one.placements
    ]
    return table(head, rows)
