"""The machines that a server's expert-parallel ranks run on, by what its workers wrote beside their
logs."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from core.files import NOT_JSON
from core.recorder.gatescope_recorder.about import SUFFIX
from core.recorder.gatescope_recorder.gatelog import Header


def of_ranks(folder: Path, header: Header) -> tuple[str, ...]:
    """The node of each rank; empty where one is not known, and with pipeline stages, whose layers
    may lie on nodes of their own."""
    if header.ranks < 2 or header.pp_size > 1 or header.ranks % header.dp_size:
        return ()
    tensor = header.ranks // header.dp_size
    places = (divmod(rank, tensor) for rank in range(header.ranks))
    found = [_node(folder / f"dp{dp}_pp0_tp{tp}{SUFFIX}") for dp, tp in places]
    return tuple(found) if all(found) else ()


def shares(of_ranks: Sequence[float], nodes: Sequence[str]) -> dict[str, float]:
    """Each node's part of a load, from its ranks'; empty on one node, or where they are not
    known."""
    if len(set(nodes)) < 2 or len(of_ranks) != len(nodes):
        return {}
    found = dict.fromkeys(nodes, 0.0)
    for node, share in zip(nodes, of_ranks, strict=True):
        found[node] += share
    return found


def _node(file: Path) -> str:
    with contextlib.suppress(OSError, *NOT_JSON):
        return msgspec.json.decode(file.read_bytes(), type=dict[str, str]).get("node", "")
    return ""
