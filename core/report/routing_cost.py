"""The report's section on what routing costs a step: the model, each dataset over a fair router,
the edges of tiles, and other placements of the experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.analysis import calibration, cost_model, routing_cost, step_sample
from core.analysis.calibration import Calibration
from core.analysis.cost_model import PRICE, CostModel
from core.analysis.routing_cost import Edge, Placed, RoutingCost
from core.analysis.step_sample import StepSample
from core.errors import GateLogError
from core.report import cost
from core.report.document import heading, items, table, text
from core.routing import placement
from core.routing.price import Prices
from core.rundir.about import About
from core.rundir.selection import Selection

METHOD = (
    "The model is fitted to single decode steps; its work is that of the busiest rank, summed over"
    " layers. A fair router gives each token any top-k experts, all equally probable; it is priced"
    " on the very batches of the dataset. Intervals rest on blocks of a dataset's steps and on the"
    " model's own intervals (over runs, or blocks where runs are few): they say what these"
    " requests would cost again, not what others would."
)
WHAT_IF = (
    "Placements are made from the first half of the decode steps and judged on the second. EPLB has"
    " one spare slot a GPU; hierarchical takes 2 nodes. Savings are by the cost model, for the"
    " number of ranks that ran."
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


@dataclass(frozen=True, slots=True)
class BackendCost:
    """One backend's decode steps, priced. `calibrated`: by a sweep of its own; None: the model is
    fitted to these very runs."""

    name: str
    natural: StepSample
    every: StepSample  # those of forced routing too
    model: CostModel
    prices: Prices | None
    calibrated: Calibration | None


def of_run_directory(
    path: Path, about: About, names: Sequence[str], chosen: Selection
) -> list[BackendCost]:
    """Every backend whose gate logs can be read."""
    found = []
    for name in names:
        known = calibration.of_backend(about, name)
        prices = known.prices() if known else None
        try:
            natural, every = (
                step_sample.of_backend(path, name, chosen, prices, forced=forced)
                for forced in (False, True)
            )
        except (GateLogError, OSError):  # the report names it elsewhere
            continue
        model = known.decode if known else cost_model.fit(every, "decode")
        found.append(BackendCost(name, natural, every, model, prices, known))
    return found


def parts(costs: Sequence[BackendCost], unread: Sequence[str]) -> list[str]:
    """The section in Markdown."""
    sentences = [*unread, *(line for one in costs for line in sentences_of(one))]
    by_dataset = {one.name: routing_cost.of_datasets(one.natural, one.model) for one in costs}
    rows = [_row(name, found) for name, every in by_dataset.items() for found in every]
    rivals = [
        table(
            [f"{one.name}: {cost.QUALITY_HEAD[0]}", *cost.QUALITY_HEAD[1:]],
            cost.quality_rows(one.model),
        )
        for one in costs
        if one.model.qualities
    ]
    tables = [table(HEAD, rows)] if rows else []
    placements = [_what_if(one) for one in costs]
    head = heading("What routing costs a decode step")
    return [
        head,
        items(sentences or ["No gate log of natural routing."]),
        *tables,
        *rivals,
        *placements,
        text(f"{METHOD} {WHAT_IF}"),
    ]


def sentences_of(one: BackendCost) -> list[str]:
    """The model, then what it says of these runs."""
    lines = cost.in_words(one.model, one.name)
    if one.calibrated and not one.model.reason and len(one.every.of_phase("decode").rows):
        made = f"{one.name}, calibrated on {one.calibrated.made[:10]}; these runs it has not seen"
        lines.append(cost.checked(cost_model.check(one.model, one.every), made))
    if one.model.reason or not len(one.natural.of_phase("decode").rows):
        return lines
    lines += _span(one.name, routing_cost.of_datasets(one.natural, one.model), one.model)
    if edge := routing_cost.edge(one.natural, one.prices):
        lines.append(_edge(one.name, edge))
    if placed := routing_cost.placed(one.natural, one.model, one.prices):
        lines.append(_cheapest(one.name, placed[0]))
    return lines


def _span(name: str, found: Sequence[RoutingCost], model: CostModel) -> list[str]:
    """The cheapest and the dearest dataset."""
    known = sorted(
        (one for one in found if one.over_fair.value is not None),
        key=lambda one: one.over_fair.value or 0.0,
    )
    if not known:
        return []
    ends = [known[0]] if len(known) == 1 else [known[0], known[-1]]
    said = "; ".join(f"the routing of {of_dataset(end, model)}" for end in ends)
    return [f"{name}: over a fair router's on the same batches, {said} (n = {len(known)} datasets)"]


def of_dataset(found: RoutingCost, model: CostModel) -> str:
    """`001 costs +1.20 ms [1.10, 1.30] a step, +4.1 % …`, over a fair router's."""
    spent = f"{cost.micros(found.over_fair, '+')} a step, {found.share.shown('+.1f')} %"
    said = f"{found.dataset} costs {spent}"
    if model.by != PRICE or not found.waiting or not found.weights or not found.padding:
        return said
    split = {"waiting": found.waiting, "weights": found.weights, "padding": found.padding}
    named = ", ".join(f"{part} {cost.micros(one, '+')}" for part, one in split.items())
    return f"{said}: {named}"


def _edge(name: str, edge: Edge) -> str:
    return (
        f"{name}: at {edge.tokens} tokens a step a fair router computes {edge.rows:.1f} times the"
        f" rows that hold a token; at {edge.better} it computes {edge.better_rows:.1f} times, and"
        f" the MoE layers take {100 * edge.saved:.0f} % less for each token"
    )


def _cheapest(name: str, best: Placed) -> str:
    saved = cost.micros(best.saved, "+")
    if best.saved.value == 0:
        return f"{name}: of the placements that were tried, the one that ran is the cheapest"
    if not best.saved.excludes_zero or (best.saved.value or 0) < 0:
        none = "no placement is detected to be cheaper than the one that ran"
        return f"{name}: {none} ({best.name}: {saved})"
    return f"{name}: the cheapest placement, {best.name}, saves {saved} of a decode step"


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


def _what_if(one: BackendCost) -> str:
    placed = routing_cost.placed(one.natural, one.model, one.prices)
    saved: Mapping[str, Placed] = {found.name: found for found in placed}
    head = [f"{one.name}: GPUs", "placement", "rank max/mean", "decode step saved"]
    outcomes = placement.what_if(one.natural.loads)
    if one.natural.placed == "EPLB":
        outcomes.append(routing_cost.as_it_ran(one.natural))
    rows = []
    for outcome in outcomes:
        known = saved.get(outcome.name) if outcome.ranks == one.natural.ranks else None
        rows.append(
            [
                str(outcome.ranks),
                outcome.name,
                f"{outcome.ratio:.3f}",
                cost.micros(known.saved, "+") if known else "–",
            ]
        )
    return table(head, rows)
