"""Two run directories or sweeps compared, as paragraphs: what `gatescope compare` says. Slow: read
off the UI thread."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tui.draw.text import NONE, Span

if TYPE_CHECKING:
    from core.analysis.across import Pair


def of(before: Path, after: Path) -> list[Span]:
    """The later side against the earlier. GatescopeError where one of them holds no results."""
    from core.analysis import across, comparand
    from core.stats.comparison import MARGIN_PCT
    from core.validity import verdict

    sides = (comparand.read(before), comparand.read(after))
    pairs, rest = across.pairs(*sides, MARGIN_PCT)
    said: list[Span] = []
    for path, cells in zip((before, after), sides, strict=True):
        said += [(f"! {text}", "warn") for text in verdict.invalid(path, cells)]
    for pair in pairs:
        said += [("", ""), (pair.name, "strong")]
        said += [(f"· {one.in_words}", "dim") for one in pair.differences]
        said += _metrics(pair)
        if pair.left_out:
            said.append((f"· left out: {'; '.join(pair.left_out)}", "dim"))
    if rest:
        said += [("", ""), (f"Without a counterpart: {', '.join(rest)}", "dim")]
    return said[1:] if said and not said[0][0] else said


def _metrics(pair: Pair) -> list[Span]:
    """A line for each metric: both sides, the change with its interval, the verdict."""
    from core.plots import labels

    if pair.refused:
        return [(f"! {pair.refused}", "warn")]
    why = (metric.comparison.ratio.reason for metric in pair.metrics)
    said: list[Span] = [(text, "dim") for text in dict.fromkeys(why) if text]
    for metric in pair.metrics:
        one = metric.comparison
        interval = "" if one.shown_interval == NONE else f" {one.shown_interval}"
        change = "" if one.percent is None else f"  {one.percent:+.1f} %{interval}"
        values = f"{metric.before:.4g} → {metric.after:.4g}"
        verdict = f"  {one.verdict_in_words}" if one.ratio.value is not None else ""
        role = "note" if one.verdict == "larger" else ""
        said.append((f"{labels.metric(one.metric)}: {values}{change}{verdict}", role))
    said += [(f"{one.name}: {one.before:.3g} → {one.after:.3g}", "") for one in pair.routing]
    return said or [("No metric is known on both sides.", "dim")]
