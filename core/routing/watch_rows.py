"""What a watched log shows, in words: each layer's last minute beside its last hour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from core.routing import rank_nodes
from core.terminal import printable, shown

if TYPE_CHECKING:
    from core.recorder.gatescope_recorder.gatelog import Header
    from core.routing.layers import LayerLoad, Totals

LAYER = "layer"
HEADS = (LAYER, "max/mean", "excess CV", "active", "hottest expert", "busiest rank", "busiest node")
OF_RANKS, OF_NODES = ("max/mean", "busiest rank"), ("busiest node",)  # where there are several
NAMED = 2  # ranks of each window; where there are nodes, one of each
NOTE = "pairs: last minute, last hour; excess CV: beyond chance; active: experts a step"


class Pair(NamedTuple):
    """One layer; `minute` is None where it had no step."""

    minute: LayerLoad | None
    hour: LayerLoad

    @property
    def unevenness(self) -> float:
        """Of its ranks, or without expert parallelism of its experts."""
        now = self.minute or self.hour
        return now.cv if now.rank is None else now.rank


def pairs(minute: Totals, hour: Totals) -> list[Pair]:
    """The layers in their order."""
    now = {layer.layer: layer for layer in minute.layers()}
    return [Pair(now.get(layer.layer), layer) for layer in hour.layers()]


def about(header: Header | None, places: Sequence[str]) -> list[str]:
    """`vllm 0.30, mixtral: 32 layers × 8 experts, top-2, 16 ranks on 2 nodes`."""
    if header is None:
        return []
    model = Path(header.model).name if header.model.startswith("/") else header.model
    shape = f"{header.layers} layers × {header.experts} experts, top-{header.top_k}"
    ranks = f", {header.ranks} ranks" if header.ranks > 1 else ""
    on = f" on {count} nodes" if (count := len(set(places))) > 1 else ""
    sample = f"; one step in {header.sample}" if header.sample > 1 else ""
    return [printable(f"{header.engine}, {model}: {shape}{ranks}{on}{sample}")]


def seen(of: Totals, places: Sequence[str]) -> str:
    """Steps of a window, and its busiest ranks and nodes over all layers."""
    if not of.steps:
        return "no step"
    took = of.duration_ns / of.steps / 1e6
    steps = "1 step" if of.steps == 1 else f"{of.steps} steps"
    return f"{steps}, {of.tokens} tokens, {took:.2f} ms a step{_busiest(of, places)}"


def heads(*, has_ranks: bool, has_nodes: bool) -> list[str]:
    """The columns of the table."""
    left_out = (() if has_ranks else OF_RANKS) + (() if has_nodes else OF_NODES)
    return [head for head in HEADS if head not in left_out]


def cells(pair: Pair, places: Sequence[str]) -> dict[str, str]:
    """One row, by column."""
    minute, hour = pair
    both = (minute, hour)
    ranks = [one.rank_shares if one else () for one in both]
    return {
        LAYER: f"L{hour.layer:02d}",
        "max/mean": _pair([one.rank if one else None for one in both], ".2f"),
        "excess CV": _pair([one.excess if one else None for one in both], ".3f"),
        "active": _pair(
            [one.active if one else None for one in both], ".1f" if hour.active < 99 else ".0f"
        ),
        "hottest expert": " ".join(_largest(by("e", one.shares if one else ())) for one in both),
        "busiest rank": " ".join(_largest(by("r", own)) for own in ranks),
        "busiest node": " ".join(_largest(rank_nodes.shares(own, places)) for own in ranks),
    }


def by(letter: str, shares: Sequence[float]) -> dict[str, float]:
    """`r0` → its share."""
    return {f"{letter}{place}": share for place, share in enumerate(shares)}


def share(part: float) -> str:
    return f"{part:.0%}" if part >= 0.1 else f"{part:.1%}"


def _busiest(of: Totals, places: Sequence[str]) -> str:
    if not of.has_ranks:
        return ""
    loads = of.by_rank.sum(axis=0)
    ranks = (loads / loads.sum()).tolist()
    by_node = rank_nodes.shares(ranks, places)
    found = [by("r", ranks), by_node] if by_node else [by("r", ranks)]
    return "".join(f"; {_named(own, NAMED // len(found))}" for own in found)


def _named(shares: Mapping[str, float], most: int) -> str:
    largest = sorted(shares, key=lambda name: -shares[name])[:most]
    more = " …" if len(shares) > most else ""
    return "  ".join(f"{printable(name)} {share(shares[name])}" for name in largest) + more


def _pair(values: Sequence[float | None], form: str) -> str:
    return " ".join(shown(value, form) for value in values)


def _largest(shares: Mapping[str, float]) -> str:
    if not shares:
        return "–"
    name = max(shares, key=shares.__getitem__)
    return f"{printable(name)} {share(shares[name])}"
