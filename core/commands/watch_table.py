"""What `gatescope watch` prints without a screen: the last minute beside the last hour, for each
phase and layer; in 80 columns, for the usual sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from core.routing import repeats, watch_rows
from core.routing.windows import HOUR_S, MINUTE_S, PHASES
from core.terminal import printable

if TYPE_CHECKING:
    from core.routing.layers import Totals
    from core.routing.windows import Watched


def lines(watched: Watched, now_s: float) -> list[str]:
    found = [printable(str(watched.logs or watched.folder))]
    found += watch_rows.about(watched.header, watched.nodes)
    if watched.problem:
        found.append(printable(watched.problem))
    if watched.header is None:
        return found
    if watched.logs and (warning := repeats.random_prompts(watched.logs)):
        found.append(warning)
    for phase in PHASES:
        minute, hour = (watched.windows.last(phase, s, now_s) for s in (MINUTE_S, HOUR_S))
        found += _phase(phase, minute, hour, watched.nodes)
    return [*found, watch_rows.NOTE]


def _phase(phase: str, minute: Totals, hour: Totals, nodes: Sequence[str]) -> list[str]:
    found = [
        f"{phase:<8} minute  {watch_rows.seen(minute, nodes)}",
        f"{'':<8} hour    {watch_rows.seen(hour, nodes)}",
    ]
    if not hour.steps:
        return found
    pairs = sorted(watch_rows.pairs(minute, hour), key=lambda one: -one.unevenness)
    rows = [watch_rows.cells(pair, nodes) for pair in pairs]
    heads = watch_rows.heads(has_ranks=hour.has_ranks, has_nodes=len(set(nodes)) > 1)
    return found + _table(heads, rows)


def _table(heads: Sequence[str], rows: Sequence[dict[str, str]]) -> list[str]:
    found = [dict(zip(heads, heads, strict=True)), *rows]
    widths = [2 + max(len(row[head]) for row in found) for head in heads]
    return [
        "".join(row[head].ljust(width) for head, width in zip(heads, widths, strict=True)).rstrip()
        for row in found
    ]
