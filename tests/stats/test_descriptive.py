from __future__ import annotations

import numpy as np
import pytest

from core.stats import descriptive


def test_gini_is_over_the_last_axis_and_nan_of_nothing() -> None:
    found = descriptive.gini(np.array([[6.0, 2, 0, 0], [1, 1, 1, 1], [0, 0, 0, 5], [0, 0, 0, 0]]))
    assert found == pytest.approx([20 / 32, 0, 3 / 4, np.nan], nan_ok=True)


def test_the_median_is_of_what_is_known() -> None:
    assert descriptive.median([3.0, None, 1.0, 8.0]) == 3
    assert descriptive.median([None]) is None
