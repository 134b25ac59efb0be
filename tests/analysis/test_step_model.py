"""The step model: a planted cost of imbalance is found, and none where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from support.synthetic import routed, write_log

from core.analysis import step_model, step_sample


def decode_log(folder: Path, cost_us: float, seed: int = 0) -> step_sample.StepSample:
    """600 decode steps of 12 runs, 2 ranks: 1000 µs + 5 µs a token + `cost_us` a token of the
    busiest rank's extra."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(8, 33, 600)
    loads = routed(rng, tokens, 2, np.array([2.0, 1, 1, 1]))
    by_rank = loads.reshape(600, 2, 2, 2).sum(axis=-1)
    extra = (by_rank.max(axis=-1) - by_rank.mean(axis=-1)).mean(axis=-1)
    took = 1000 + 5 * tokens + cost_us * extra + rng.normal(0, 20, 600)
    took[::50] += 5000  # slow for reasons of their own
    labels = [f"{i // 50:03d}" for i in range(600)]
    write_log(
        folder / "dp0_pp0.gatelog",
        loads,
        labels=labels,
        durations_ns=[int(t * 1e3) for t in took],
        ranks=2,
        placement=(0, 0, 1, 1),
    )
    return step_sample.read([folder])


def test_a_planted_cost_lies_in_its_interval(tmp_path: Path) -> None:
    found = step_model.fit(decode_log(tmp_path, 10.0), "decode")
    assert found.n == 600
    assert found.unit == "rank"
    assert found.per_token.excludes_zero
    low, high = found.per_token.interval or (0.0, 0.0)
    assert low <= 10.0 <= high
    assert high - low < 5


def test_no_cost_is_reported_as_none(tmp_path: Path) -> None:
    assert not step_model.fit(decode_log(tmp_path, 0.0), "decode").per_token.excludes_zero


def test_too_few_steps_are_null_with_a_reason(tmp_path: Path) -> None:
    found = step_model.fit(decode_log(tmp_path, 0.0), "prefill")
    assert found.saved.value is None
    assert "n = 0 steps" in str(found.saved.reason)
