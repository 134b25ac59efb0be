"""What `gatescope watch` prints: the last minute beside the last hour, for each phase and layer; in
80 columns, for the usual sizes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core.routing import repeats
from core.routing.windows import HOUR_S, MINUTE_S, PHASES
from core.terminal import printable, shown

if TYPE_CHECKING:
    from core.recorder.gatescope_recorder.gatelog import Header
    from core.routing.layers import LayerLoad, Totals
    from core.routing.windows import Watched

HEADS = ("layer", "max/mean", "excess CV", "active", "hottest expert", "busiest rank")
RANK_HEADS = ("max/mean", "busiest rank")  # only with expert parallelism
RANKS = 2  # named of each window
NOTE = "pairs: last minute, last hour; excess CV: beyond chance; active: experts a step"


def frame(watched: Watched, now_s: float, rows: int) -> list[str]:
    """As many lines as fit into `rows`."""
    lines = [printable(str(watched.logs or watched.folder)), *_about(watched.header)]
    if watched.problem:
        lines.append(printable(watched.problem))
    if watched.header is None:
        return lines
    if watched.logs and (warning := repeats.random_prompts(watched.logs)):
        lines.append(warning)
    room = (rows - len(lines) - 1) // len(PHASES)
    for phase in PHASES:
        minute, hour = (watched.windows.last(phase, s, now_s) for s in (MINUTE_S, HOUR_S))
        lines += _phase(phase, minute, hour, room)
    return [*lines, NOTE]


def _about(header: Header | None) -> list[str]:
    if header is None:
        return []
    model = Path(header.model).name if header.model.startswith("/") else header.model
    shape = f"{header.layers} layers × {header.experts} experts, top-{header.top_k}"
    ranks = f", {header.ranks} ranks" if header.ranks > 1 else ""
    sample = f"; one step in {header.sample}" if header.sample > 1 else ""
    return [printable(f"{header.engine}, {model}: {shape}{ranks}{sample}")]


def _phase(phase: str, minute: Totals, hour: Totals, room: int) -> list[str]:
    lines = [f"{phase:<8} minute  {_seen(minute)}", f"{'':<8} hour    {_seen(hour)}"]
    if not hour.steps:
        return lines
    now = {layer.layer: layer for layer in minute.layers()}
    pairs = [(now.get(layer.layer), layer) for layer in hour.layers()]
    pairs.sort(key=lambda pair: _height(pair[0] or pair[1]), reverse=True)
    fitting = max(1, room - len(lines) - 2)  # heads, and how many are left out
    lines += _table([_layer(one, other) for one, other in pairs[:fitting]], hour.has_ranks)
    if (more := len(pairs) - fitting) > 0:
        lines.append(f"… {more} more layers, less uneven")
    return lines


def _seen(of: Totals) -> str:
    if not of.steps:
        return "no step"
    took = of.duration_ns / of.steps / 1e6
    steps = "1 step" if of.steps == 1 else f"{of.steps} steps"
    return f"{steps}, {of.tokens} tokens, {took:.2f} ms a step{_ranks(of)}"


def _ranks(of: Totals) -> str:
    """The busiest ranks over all layers."""
    if not of.has_ranks:
        return ""
    loads = of.by_rank.sum(axis=0)
    busiest = sorted(range(len(loads)), key=lambda rank: -loads[rank])[:RANKS]
    shares = "  ".join(f"r{rank} {_share(loads[rank] / loads.sum())}" for rank in busiest)
    return f"; {shares}" + (" …" if len(loads) > RANKS else "")


def _height(layer: LayerLoad) -> float:
    return layer.cv if layer.rank is None else layer.rank


def _layer(minute: LayerLoad | None, hour: LayerLoad) -> dict[str, str]:
    both = (minute, hour)
    return {
        "layer": f"L{hour.layer:02d}",
        "max/mean": _pair([one.rank if one else None for one in both], ".2f"),
        "excess CV": _pair([one.excess if one else None for one in both], ".3f"),
        "active": _pair(
            [one.active if one else None for one in both], ".1f" if hour.active < 99 else ".0f"
        ),
        "hottest expert": " ".join(_largest("e", one.shares if one else ()) for one in both),
        "busiest rank": " ".join(_largest("r", one.rank_shares if one else ()) for one in both),
    }


def _table(rows: Sequence[dict[str, str]], has_ranks: bool) -> list[str]:
    heads = [head for head in HEADS if has_ranks or head not in RANK_HEADS]
    widths = [2 + max(len(row[head]) for row in (*rows, {head: head})) for head in heads]
    lines = [dict(zip(heads, heads, strict=True)), *rows]
    return [
        "".join(line[head].ljust(width) for head, width in zip(heads, widths, strict=True)).rstrip()
        for line in lines
    ]


def _pair(values: Sequence[float | None], form: str) -> str:
    return " ".join(shown(value, form) for value in values)


def _largest(letter: str, shares: Sequence[float]) -> str:
    if not shares:
        return "–"
    place = max(range(len(shares)), key=shares.__getitem__)
    return f"{letter}{place} {_share(shares[place])}"


def _share(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"
