"""A run's own figures from the gate log."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from synthetic import routed, write_log

from core import gatelog
from core.measurement import decode_step_ms


def test_the_decode_step_is_the_median_of_the_runs_own_steps_without_prompt_tokens(tmp_path: Path) -> None:
    loads = routed(np.random.default_rng(0), [4] * 8, 2, np.ones(4))
    log = gatelog.read(
        write_log(
            tmp_path / "dp0_pp0.gatelog",
            loads,
            labels=["warmup", "001", "001", "001", "001", "001", "002", "002"],
            durations_ns=[n * 1_000_000 for n in (90, 50, 3, 7, 4, 80, 11, 12)],
            prefill=[0, 4, 0, 0, 0, 1, 0, 0],
        )
    )
    assert decode_step_ms([log], "001") == pytest.approx(4)  # of 3, 7, 4
    assert decode_step_ms([log.where(log.tokens > 9), log], "002") == pytest.approx(11.5)
    assert decode_step_ms([log], "003") is None
    assert decode_step_ms([], "001") is None
