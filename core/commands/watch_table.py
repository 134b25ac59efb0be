"""What `gatescope watch` prints: the last minute beside the last hour, for each phase and layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from core.routing.windows import HOUR_S, MINUTE_S, PHASES
from core.terminal import printable, shown

if TYPE_CHECKING:
    from core.recorder.gatescope_recorder.gatelog import Header
    from core.routing.layers import LayerLoad, Totals
    from core.routing.windows import Watched

HEADS = ("layer", "rank max/mean", "excess CV", "active experts", "hottest expert", "busiest rank")
WIDTHS = (6, 14, 15, 16, 24, 22)
TITLE = "".join(head.ljust(width) for head, width in zip(HEADS, WIDTHS, strict=True)).rstrip()
NOTE = (
    "each: last minute, last hour; – not known; excess CV: above what a fair router shows by chance"
)


def frame(watched: Watched, now_s: float, rows: int) -> list[str]:
    """As many lines as fit into `rows`."""
    lines = [printable(f"{watched.logs or watched.folder}  {_about(watched.header)}")]
    if watched.problem:
        lines.append(printable(watched.problem))
    if watched.header is None:
        return lines
    room = (rows - len(lines) - 2) // len(PHASES)
    for phase in PHASES:
        minute, hour = (watched.windows.last(phase, s, now_s) for s in (MINUTE_S, HOUR_S))
        lines += _phase(phase, minute, hour, room)
    return [*lines, NOTE]


def _about(header: Header | None) -> str:
    if header is None:
        return ""
    shape = f"{header.layers} layers × {header.experts} experts, top-{header.top_k}"
    ranks = f", {header.ranks} ranks" if header.ranks > 1 else ""
    sample = f"; one step in {header.sample}" if header.sample > 1 else ""
    return f"{header.engine}, {header.model}: {shape}{ranks}{sample}"


def _phase(phase: str, minute: Totals, hour: Totals, room: int) -> list[str]:
    lines = [f"{phase:<8} {_seen('minute', minute)};  {_seen('hour', hour)}"]
    if not hour.steps:
        return lines
    if hour.has_ranks:
        lines.append(f"         ranks  {_ranks(minute) or '–'};  {_ranks(hour)}")
    now = {layer.layer: layer for layer in minute.layers()}
    pairs = [(now.get(layer.layer), layer) for layer in hour.layers()]
    pairs.sort(key=lambda pair: _height(pair[0] or pair[1]), reverse=True)
    fitting = max(1, room - len(lines) - 2)
    lines += [TITLE, *(_layer(one, other) for one, other in pairs[:fitting])]
    if (more := len(pairs) - fitting) > 0:
        lines.append(f"… {more} more layers, less uneven")
    return lines


def _seen(name: str, of: Totals) -> str:
    if not of.steps:
        return f"last {name}: no step"
    took = of.duration_ns / of.steps / 1e6
    steps = "1 step" if of.steps == 1 else f"{of.steps} steps"
    return f"last {name}: {steps}, {of.tokens} tokens, {took:.2f} ms a step"


def _ranks(of: Totals) -> str:
    if not of.steps:
        return ""
    loads = of.by_rank.sum(axis=0)
    return "  ".join(f"r{r} {share:.1%}" for r, share in enumerate(loads / loads.sum()))


def _height(layer: LayerLoad) -> float:
    return layer.cv if layer.rank is None else layer.rank


def _layer(minute: LayerLoad | None, hour: LayerLoad) -> str:
    both = (minute, hour)
    cells = (
        f"L{hour.layer:02d}",
        _pair([one.rank if one else None for one in both], ".2f"),
        _pair([one.excess if one else None for one in both], ".3f"),
        _pair([one.active if one else None for one in both], ".1f"),
        "  ".join(_largest("e", one.shares if one else ()) for one in both),
        "  ".join(_largest("r", one.rank_shares if one else ()) for one in both),
    )
    return "".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()


def _pair(values: Sequence[float | None], form: str) -> str:
    return "  ".join(shown(value, form) for value in values)


def _largest(letter: str, shares: Sequence[float]) -> str:
    if not shares:
        return "–"
    place = max(range(len(shares)), key=shares.__getitem__)
    return f"{letter}{place} {shares[place]:.1%}"
