"""What all tests of the built-in engine share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from threadpoolctl import threadpool_limits


@pytest.fixture(scope="package", autouse=True)
def one_blas_thread() -> Iterator[None]:
    """As in the server: or the ranks' BLAS threads would fight over the cores."""
    with threadpool_limits(1):
        yield
