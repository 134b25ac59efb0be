"""What the report says of a prediction of the router against what was measured."""

from __future__ import annotations

from collections.abc import Sequence

from core.analysis import foretold
from core.analysis.foretold import Foretold
from core.analysis.results import Results
from core.report.document import heading, items, text

NOTE = (
    "n counts datasets, each at the mean of its runs. Square brackets hold 95 % intervals: "
    "bootstrap over datasets, Sen's for the slope, 1 where a prediction is of the right size."
)


def parts(groups: Sequence[Results]) -> list[str]:
    """A sentence for each backend and phase; nothing where nothing was predicted."""
    found = sentences(groups)
    if not found:
        return []
    return [heading("Predicted and measured routing"), items(found), text(NOTE)]


def sentences(groups: Sequence[Results]) -> list[str]:
    return [_in_words(one) for group in groups for one in foretold.of(group)]


def _in_words(of: Foretold) -> str:
    spearman, slope = of.order()
    order = (
        f"Spearman {spearman.shown('.2f')}, slope of measured on predicted {slope.shown('.2f')}"
        if spearman.value is not None
        else f"no order ({spearman.reason})"
    )
    inside, of_all = of.covered
    held = f"; intervals hold {inside} of {of_all}" if of_all else ""
    return (
        f"{of.backend}, {of.phase}, {of.mode}: predicted against measured excess CV²: {order}, mean"
        f" error {of.error:.3f} (n = {len(of.datasets)}){held}."
    )
