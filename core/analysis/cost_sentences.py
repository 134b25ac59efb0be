"""The cost model, and what it says of routing, in words and rows of a table."""

from __future__ import annotations

from core.analysis.cost_model import PRICE, ROWS, Check, CostModel, Quality
from core.analysis.routing_cost import EDGE, SMALLER, BackendCost, Edge, RoutingCost
from core.stats.estimate import Estimate
from core.terminal import shown

UNITS = {
    "requests": "a request",
    "context": "1000 tokens of context",
    "prefill_tokens": "a prompt token",
    "price_us": "1 µs of the kernel's price",
    "active": "an active expert of a layer",
    "rows": "a token of a layer's busiest rank",
}
PER = {"context": 1000.0}
EDGES = 2  # that are named
QUALITY_HEAD = [
    "the work of a step by",
    "R², left out",
    "mean error, %",
    "worst, %",
    "R², forced → natural",
    "mean error, %",
]


def terms(model: CostModel) -> str:
    """`4.53 ms + 16.2 µs [12.9, 19.4] a request + …`."""
    fixed = f"{(model.terms['fixed'].value or 0) / 1e3:.3g} ms"
    rest = [name for name in model.terms if name != "fixed"]
    return " + ".join(
        [fixed, *(f"{_term(model.terms[name], name)} for {unit(name)}" for name in rest)]
    )


def _term(found: Estimate, name: str) -> str:
    if name == "price_us":
        return f"{found.shown('.3f')} µs"
    return micros(found.scaled(PER.get(name, 1.0)))


def micros(found: Estimate, sign: str = "") -> str:
    """A time given in µs, with its interval; from 1 ms on in ms."""
    if found.value is None:
        return "–"
    if abs(found.value) >= 1000:
        return f"{found.scaled(1e-3).shown(f'{sign}.2f')} ms"
    return f"{found.shown(f'{sign}.1f')} µs"


def unit(name: str) -> str:
    kind, _, blocks = name.partition(" ")
    return f"a unit of waves of {blocks} tiles" if blocks else UNITS[kind]


def in_words(model: CostModel, backend: str) -> list[str]:
    """What the model is, and how well it predicts runs that it has not seen."""
    who = f"{backend}, {model.phase} steps"
    if model.reason:
        return [f"{who}: no cost model: {model.reason}"]
    by = f"{model.by} (its kernel publishes no tiling)" if model.by == ROWS else model.by
    what = f"{who}, by {by}: {terms(model)} (n = {model.steps} steps of {model.runs} runs)"
    best = model.qualities[0]
    if best.r2 is None:
        return [what, f"{who}: one run alone, so nothing was predicted that the model had not seen"]
    said = (
        f"{who}, each {model.left_out} left out in turn: R² {best.r2:.3f}, mean error"
        f" {shown(best.error, '.2g')} %, worst {shown(best.worst, '.2g')} % of a run's median step"
    )
    if best.natural_r2 is not None:
        said += (
            f"; fitted to forced runs and tested on natural ones: R² {best.natural_r2:.3f},"
            f" mean error {shown(best.natural_error, '.2g')} %"
        )
    return [what, said]


def quality_rows(model: CostModel) -> list[list[str]]:
    return [_quality_row(quality) for quality in model.qualities]


def _quality_row(of: Quality) -> list[str]:
    return [
        of.by,
        shown(of.r2, ".3f"),
        shown(of.error, ".2f"),
        shown(of.worst, ".2f"),
        shown(of.natural_r2, ".3f"),
        shown(of.natural_error, ".2f"),
    ]


def checked(found: Check, subject: str) -> str:
    """How well a model predicts runs that it was not fitted to."""
    within = ", ".join(f"{size}: {r2:.2f}" for size, r2 in found.within.items())
    return (
        f"{subject}: the median steps of {found.runs} runs are predicted with R²"
        f" {shown(found.r2, '.3f')}, mean error {found.error:.2f} %, worst {found.worst:.2f} %;"
        f" with one offset of {found.offset_us / 1e3:+.2f} ms the mean error is {found.after:.2f} %"
        f"{f'; R² within each number of tokens: {within}' if within else ''}"
    )


# --- one backend ---


def sentences_of(one: BackendCost) -> list[str]:
    """The model, then what it says of these runs."""
    lines = in_words(one.model, one.backend)
    if one.check and one.calibrated:
        made = f"{one.backend}, calibrated on {one.calibrated[:10]}; these runs it has not seen"
        lines.append(checked(one.check, made))
    lines += _span(one)
    lines += [edge_in_words(one.backend, edge) for edge in one.edges[:EDGES]]
    return [*lines, *_cheapest(one)]


def _span(of: BackendCost) -> list[str]:
    """The cheapest and the dearest dataset."""
    known = sorted(
        (one for one in of.datasets if one.over_fair.value is not None),
        key=lambda one: one.over_fair.value or 0.0,
    )
    if not known:
        return []
    ends = [known[0]] if len(known) == 1 else [known[0], known[-1]]
    said = "; ".join(f"the routing of {of_dataset(end, of.model)}" for end in ends)
    n = f"n = {len(known)} datasets"
    return [f"{of.backend}: over a fair router's on the same batches, {said} ({n})"]


def of_dataset(found: RoutingCost, model: CostModel) -> str:
    """`001 costs +1.20 ms [1.10, 1.30] a step, +4.1 % …`, over a fair router's."""
    spent = f"{micros(found.over_fair, '+')} a step, {found.share.shown('+.1f')} %"
    said = f"{found.dataset} costs {spent}"
    if model.by != PRICE or not found.waiting or not found.weights or not found.padding:
        return said
    split = {"waiting": found.waiting, "weights": found.weights, "padding": found.padding}
    named = ", ".join(f"{part} {micros(one, '+')}" for part, one in split.items())
    return f"{said}: {named}"


def edge_in_words(name: str, edge: Edge) -> str:
    here = (
        f"{name}: at {edge.tokens} tokens a step a fair router computes {edge.rows:.1f} times the"
        " rows that hold a token"
    )
    if edge.better == edge.tokens:
        least, most = (f"{100 * share:.0f}" for share in (SMALLER, EDGE))
        return f"{here}; no batch down to {least} % of it takes {most} % less time for a token"
    return (
        f"{here}; at {edge.better} it computes {edge.better_rows:.1f} times, and the MoE layers"
        f" take {100 * edge.saved:.0f} % less for each token"
    )


def _cheapest(of: BackendCost) -> list[str]:
    """The placement that was cheapest where it was made, on the ranks that ran."""
    best = of.placements[0] if of.placements else None
    if best is None or best.saved is None or best.saved.value is None:
        return []
    name, saved = of.backend, micros(best.saved, "+")
    if best.saved.value == 0:
        return [f"{name}: of the placements that were tried, the one that ran is the cheapest"]
    if not best.saved.excludes_zero or best.saved.value < 0:
        none = "no placement is detected to be cheaper than the one that ran"
        return [f"{name}: {none} ({best.name}: {saved})"]
    return [f"{name}: the cheapest placement, {best.name}, saves {saved} of a decode step"]
