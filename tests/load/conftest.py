from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.truth import Truth


@pytest.fixture(scope="session")
def running_truth() -> Iterator[Truth]:
    server = Truth()
    yield server
    server.stop()


DEFAULTS = {
    "ttft_ms": 5.0,
    "itl_ms": 1.0,
    "jitter": 0.0,
    "grid": False,
    "firehose": False,
    "burst": 1,
    "per_event": 1,
    "role_early": False,
    "fail_every": 0,
    "cut_every": 0,
    "stall_every": 0,
    "named": False,
    "split": 0,
}


@pytest.fixture
def truth(running_truth: Truth) -> Truth:
    """5 ms to the first token, then one a millisecond, until a test says otherwise."""
    running_truth.control(**DEFAULTS)
    return running_truth
