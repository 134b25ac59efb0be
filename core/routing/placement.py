"""Placements of experts on EP ranks, and the rank imbalance that each would have shown.

- linear: expert e on rank e // (E / ranks), as vLLM does by default.
- packed: the same number of experts on every rank; the heaviest expert goes first, each to the
  lightest rank that has room.
- replicated: EPLB as DeepSeek published it (github.com/deepseek-ai/EPLB), written from its
  description. Replicas are added one at a time, each to the expert with the most load per replica;
  all are then packed. The global policy does this over all ranks; the hierarchical one first packs
  groups of experts onto nodes, then replicates and packs inside each node, so that a token's group
  stays on one node.

Replicas of an expert take equal shares of its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from core.stats.arrays import Floats, Ints


@dataclass(frozen=True, slots=True)
class Placement:
    """`share[l, e, r]`: the part of expert e's tokens in layer l that rank r computes; sums to 1
    over ranks. `slots` [layers, physical experts]: the expert in each; slot s of S is on rank
    s // (S / ranks). None where ranks have different numbers of experts."""

    name: str
    share: Floats
    slots: Ints | None = None

    @property
    def ranks(self) -> int:
        return int(self.share.shape[-1])

    def rank_loads(self, loads: Floats) -> Floats:
        """Loads by rank [steps, layers, ranks], from `loads` [steps, layers, experts]."""
        by_layer = np.matmul(loads.transpose(1, 0, 2), self.share)
        return np.asarray(by_layer.transpose(1, 0, 2))

    def physical(self, loads: Floats) -> tuple[Floats, tuple[int, ...]]:
        """Loads by slot [steps, layers, slots], from `loads` [steps, layers, experts], and the rank
        of each slot: replicas are experts of their own."""
        assert self.slots is not None
        copies = np.stack([np.bincount(row, minlength=loads.shape[2])[row] for row in self.slots])
        spread = np.take_along_axis(loads, self.slots[None], axis=2) / copies
        home = np.repeat(np.arange(self.ranks), self.slots.shape[1] // self.ranks)
        return spread, tuple(home.tolist())


def linear(layers: int, experts: int, ranks: int) -> Placement:
    """Equal blocks of neighbouring experts, as vLLM places them by default."""
    _divides(ranks, experts, "experts")
    slots = np.tile(np.arange(experts), (layers, 1))
    return _placed("linear", slots, experts, ranks)


def of_ranks(ranks: Sequence[int], layers: int) -> Placement:
    """`ranks[e]` has expert e, in every layer."""
    share = np.eye(max(ranks) + 1)[np.asarray(ranks)]
    return Placement("as it ran", np.tile(share, (layers, 1, 1)))


def packed(weight: Floats, ranks: int) -> Placement:
    """No replicas; `weight` [layers, experts] is the load to balance."""
    _divides(ranks, weight.shape[1], "experts")
    pack, place = balanced_packing(weight, ranks)
    return _placed(
        "packed", _slots(pack, place, weight.shape[1] // ranks, ranks), weight.shape[1], ranks
    )


def replicated(
    weight: Floats, ranks: int, replicas: int, *, groups: int = 1, nodes: int = 1
) -> Placement:
    """EPLB with `replicas` physical experts in all; hierarchical if there are several `nodes` and
    they divide `groups`, else global."""
    policy = "hierarchical"
    if nodes < 2 or groups % nodes:
        policy, groups, nodes = "global", 1, 1
    experts = weight.shape[1]
    slots = eplb(weight, replicas, groups, nodes, ranks)
    return _placed(f"EPLB {policy}, {replicas - experts} spare", slots, experts, ranks)


def eplb(weight: Floats, replicas: int, groups: int, nodes: int, ranks: int) -> Ints:
    """The expert in each physical slot [layers, replicas]; slot s is on rank s // (replicas /
    ranks).

    `weight` [layers, experts]. Each of the `groups` of neighbouring experts stays on one node.
    ValueError if the numbers do not divide.
    """
    layers, experts = weight.shape
    _divides(groups, experts, "experts")
    _divides(nodes, groups, "groups")
    _divides(nodes, ranks, "ranks")
    _divides(ranks, replicas, "replicas")
    size, node_experts = experts // groups, experts // nodes
    pack, place = balanced_packing(weight.reshape(layers, groups, size).sum(axis=-1), nodes)
    group_at = _slots(pack, place, groups // nodes, nodes)  # groups in the order of the nodes
    order = (group_at[:, :, None] * size + np.arange(size)).reshape(layers, experts)
    on_node = np.take_along_axis(weight, order, axis=1).reshape(layers * nodes, node_experts)
    copy_of, count = replicate(on_node, replicas // nodes)
    per_copy = np.take_along_axis(on_node / count, copy_of, axis=1)
    pack, place = balanced_packing(per_copy, ranks // nodes)
    slot = _slots(pack, place, replicas // ranks, ranks // nodes)
    local = np.take_along_axis(copy_of, slot, axis=1).reshape(layers, nodes, -1)
    return np.take_along_axis(
        order, (local + np.arange(nodes)[:, None] * node_experts).reshape(layers, -1), axis=1
    )


def balanced_packing(weight: Floats, packs: int) -> tuple[Ints, Ints]:
    """Packs each row's items into `packs` of equal size: the heaviest item first, each into the
    lightest pack with room.

    Returns the pack of every item, and its place in the pack, both [rows, items].
    """
    rows, items = weight.shape
    room, all_rows = items // packs, np.arange(rows)
    pack, place = np.zeros((rows, items), np.int64), np.zeros((rows, items), np.int64)
    load, filled = np.zeros((rows, packs)), np.zeros((rows, packs), np.int64)
    for item in np.argsort(-weight, axis=1, kind="stable").T:
        lightest = np.where(filled < room, load, np.inf).argmin(axis=1)
        pack[all_rows, item], place[all_rows, item] = lightest, filled[all_rows, lightest]
        load[all_rows, lightest] += weight[all_rows, item]
        filled[all_rows, lightest] += 1
    return pack, place


def replicate(weight: Floats, replicas: int) -> tuple[Ints, Floats]:
    """One copy of every item; each spare one goes to the item with the most weight per copy.

    Returns the item of each copy [rows, replicas], and the copies of each item [rows, items].
    """
    rows, items = weight.shape
    copy_of = np.tile(np.arange(replicas) % items, (rows, 1))
    count, all_rows = np.ones((rows, items)), np.arange(rows)
    for spare in range(items, replicas):
        heaviest = (weight / count).argmax(axis=1)
        copy_of[:, spare] = heaviest
        count[all_rows, heaviest] += 1
    return copy_of, count


def options(weight: Floats, ranks: int) -> list[Placement]:
    """Linear, packed and replicated on `ranks` ranks, for the load `weight` [layers, experts]; EPLB
    has one spare slot a rank."""
    layers, experts = weight.shape
    spare = experts + ranks
    found = [
        linear(layers, experts, ranks),
        packed(weight, ranks),
        replicated(weight, ranks, spare),
    ]
    if ranks >= 4 and experts % 2 == 0:
        found.append(replicated(weight, ranks, spare, groups=experts, nodes=2))
    return found


def _slots(pack: Ints, place: Ints, room: int, packs: int) -> Ints:
    """Items in the order of packs and places: the inverse of item → (pack, place)."""
    slots = np.empty((len(pack), room * packs), np.int64)
    np.put_along_axis(
        slots, pack * room + place, np.tile(np.arange(pack.shape[1]), (len(pack), 1)), axis=1
    )
    return slots


def _placed(name: str, slots: Ints, experts: int, ranks: int) -> Placement:
    layers, size = slots.shape
    share = np.zeros((layers, experts, ranks))
    rank = np.arange(size) // (size // ranks)
    np.add.at(share, (np.arange(layers)[:, None], slots, rank[None, :]), 1.0)
    return Placement(name, share / share.sum(axis=-1, keepdims=True), slots)


def _divides(by: int, whole: int, name: str) -> None:
    if whole % by:
        raise ValueError(f"{whole} {name} cannot be divided by {by}")
