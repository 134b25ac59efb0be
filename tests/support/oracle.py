"""Upstream's published data. It is never committed; tests use it if it lies beside the checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

ORACLE = Path(__file__).parents[3] / "shared" / "oracle"
needs_oracle = pytest.mark.skipif(
    not ORACLE.is_dir(), reason="upstream's data is not beside this checkout"
)
