"""The cost model in words and tables."""

from __future__ import annotations

from core.analysis.cost_model import Check, CostModel, Quality
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
    what = f"{who}, by {model.by}: {terms(model)} (n = {model.steps} steps of {model.runs} runs)"
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
