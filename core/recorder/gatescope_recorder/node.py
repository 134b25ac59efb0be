"""Where a worker of a server that spans several nodes runs, as the supervisor of its node says.

This module runs inside vLLM's workers too: standard library only.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

VARIABLE = "GATESCOPE_NODE"


@dataclass(frozen=True, slots=True)
class Node:
    """`node`: its rank among the server's nodes. `clock_offset_ns`: what the first node's wall
    clock is ahead of this one's."""

    host: str = ""  # empty: the server is on one machine
    node: int = 0
    nodes: int = 1
    clock_offset_ns: int = 0


def here() -> Node:
    """Of this process; the default where nothing says so, or it cannot be read."""
    try:
        found = json.loads(os.environ.get(VARIABLE) or "{}")
        return Node(
            str(found.get("host", "")),
            int(found.get("node", 0)),
            int(found.get("nodes", 1)),
            int(found.get("clock_offset_ns", 0)),
        )
    except (ValueError, TypeError, AttributeError):
        return Node()
