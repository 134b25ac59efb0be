"""Load by node, for a server whose expert-parallel ranks are on several: the busiest node of a
layer, and what leaves the node of its token to reach its expert."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import numpy as np

from core.recorder.gatescope_recorder.gatelog import Header
from core.routing.gatelog import Counts, GateLog
from core.stats.arrays import Floats, Ints


class NodeImbalance(msgspec.Struct, frozen=True, kw_only=True):
    """`imbalance`: mean over steps and layers of max/mean load over nodes. `left`: the share of all
    pairs of a token and an expert whose expert is on another node; null where every node has all
    tokens (tensor parallel), and where EPLB moves experts."""

    imbalance: float
    loads: list[float]  # of each node, over the run
    busiest: int
    left: float | None = None


@dataclass(slots=True)
class NodeSums:
    """The steps of one run, summed."""

    nodes: int
    ratio: float = 0.0  # Σ over steps and layers with tokens of max/mean
    busy: int = 0  # those steps and layers
    left: float | None = 0.0
    loads: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.loads = np.zeros(self.nodes)

    def add(self, log: GateLog) -> None:
        """More steps, of the run alone."""
        ranks = log.rank_loads()
        if ranks is None:
            return
        of_rank = on_nodes(ranks.shape[-1], self.nodes)
        by_node = np.asarray(ranks @ np.eye(self.nodes)[of_rank])
        self.loads += by_node.sum(axis=(0, 1))
        mean = by_node.mean(axis=-1)
        busy = mean > 0
        self.ratio += float((by_node.max(axis=-1)[busy] / mean[busy]).sum())
        self.busy += int(busy.sum())
        if self.left is None or log.left_node is None:
            self.left = None
        else:
            self.left += float(log.left_node.sum())

    def measured(self) -> NodeImbalance | None:
        """None where no step was added."""
        if not self.busy:
            return None
        return NodeImbalance(
            imbalance=self.ratio / self.busy,
            loads=self.loads.tolist(),
            busiest=int(self.loads.argmax()),
            left=None if self.left is None else self.left / float(self.loads.sum()),
        )


def on_nodes(ranks: int, nodes: int) -> Ints:
    """The node of each of so many ranks: vLLM gives each node as many, one after the other."""
    return np.arange(ranks) * nodes // ranks


def left(header: Header, loads: Counts) -> Ints | None:
    """[steps]: Σ over layers of the pairs of a token of this data-parallel rank and an expert on
    another node. None where that is not known."""
    if header.nodes == 1 or header.dp_size == 1 or not header.placement:
        return None
    own = on_nodes(header.dp_size, header.nodes)[header.dp]
    elsewhere = on_nodes(header.ranks, header.nodes)[np.asarray(header.placement)] != own
    return np.asarray(loads[:, :, elsewhere].sum(axis=(1, 2), dtype=np.int64))
