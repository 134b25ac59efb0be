"""A run's own figures from the gate log, read part by part."""

from __future__ import annotations

import gc
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.synthetic import routed, write_log

from core.routing import gatelog
from core.routing.gatelog import GateLog
from core.routing.run import LongestStep, RunRouting


def shown(label: str, *parts: GateLog) -> RunRouting:
    routing = RunRouting(label)
    for part in parts:
        routing.add(part)
    return routing


def test_the_decode_step_is_the_median_of_the_runs_own_steps_without_prompt_tokens(
    tmp_path: Path,
) -> None:
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
    assert shown("001", log).decode_step_ms() == pytest.approx(4)  # of 3, 7, 4
    assert shown("002", log.where(log.tokens > 9), log).decode_step_ms() == pytest.approx(11.5)
    assert shown("003", log).decode_step_ms() is None
    assert shown("001").decode_step_ms() is None


def test_the_longest_step_is_the_runs_own_with_its_tokens(tmp_path: Path) -> None:
    loads = routed(np.random.default_rng(0), [9, 4, 5, 6, 9, 9], 2, np.ones(4))
    labels, durations = (
        ["warmup", "001", "001", "001", "001", "002"],
        [n * 1_000_000 for n in (90, 50, 3, 50, 7, 99)],
    )
    log = gatelog.read(
        write_log(tmp_path / "dp0_pp0.gatelog", loads, labels=labels, durations_ns=durations)
    )
    first, second = log.where(log.tokens < 6), log.where(log.tokens >= 6)
    assert shown("001", first, second).longest_step == LongestStep(50.0, 4)
    assert shown("001", second, first).longest_step == LongestStep(50.0, 6)
    assert shown("003", log).longest_step is None
    shared = replace(
        log, segments={label: np.minimum(tokens, 3) for label, tokens in log.segments.items()}
    )
    assert shown("001", shared).longest_step is None  # of every step some tokens are another's


def six_steps(folder: Path) -> GateLog:
    """A step every 2 ms, 1.5 ms long, of 4 tokens: a warm-up's, four of 001 (from 2 to 9.5 ms), one
    of 002."""
    loads = routed(np.random.default_rng(0), [4] * 6, 2, np.ones(4))
    labels = ["warmup", "001", "001", "001", "001", "002"]
    return gatelog.read(
        write_log(folder / "dp0_pp0.gatelog", loads, labels=labels, durations_ns=[1_500_000] * 6)
    )


def test_the_delivery_lag_is_from_the_runs_last_step_to_its_last_token(tmp_path: Path) -> None:
    log = six_steps(tmp_path)
    for parts in (
        [log],
        [log.where(log.columns["index"] < 3), log.where(log.columns["index"] >= 3)],
    ):
        routing = shown("001", *parts)
        assert routing.delivery_lag_ms(16, 1_000_000, 12_000_000) == pytest.approx(2.5)
        assert routing.delivery_lag_ms(16, 2_000_000, 9_500_000) == 0
        assert routing.delivery_lag_ms(16, 5_000_000, 6_500_000) == pytest.approx(
            -3
        )  # a GPU's stamps are a little off
    shared = replace(
        log, segments={label: np.minimum(tokens, 3) for label, tokens in log.segments.items()}
    )
    assert shown("001", shared).delivery_lag_ms(12, 0, 10_500_000) == pytest.approx(
        1
    )  # its tokens are in these steps
    assert shown("003", log).delivery_lag_ms(0, 0, 12_000_000) is None


@pytest.mark.parametrize("due", [15, 17])
def test_with_a_token_less_or_more_the_last_step_is_not_the_last_answers(
    tmp_path: Path, due: int
) -> None:
    assert shown("001", six_steps(tmp_path)).delivery_lag_ms(due, 0, 12_000_000) is None


@pytest.mark.parametrize(("began_ms", "last_token_ms"), [(53, 600), (-600, -41)])
def test_steps_outside_the_run_were_timed_by_another_clock(
    tmp_path: Path, began_ms: int, last_token_ms: int
) -> None:
    routing = shown("001", six_steps(tmp_path))
    assert routing.delivery_lag_ms(16, began_ms * 1_000_000, last_token_ms * 1_000_000) is None


def test_a_gpu_s_clock_may_be_off_by_what_the_recorder_leaves(tmp_path: Path) -> None:
    routing = shown("001", six_steps(tmp_path))
    assert routing.delivery_lag_ms(16, 52_000_000, 600_000_000) == pytest.approx(590.5)
    assert routing.delivery_lag_ms(16, -600_000_000, -40_500_000) == pytest.approx(-50)


def test_parts_add_up_to_the_whole_and_none_of_them_is_kept(tmp_path: Path) -> None:
    loads = routed(np.random.default_rng(1), [4] * 300, 32, np.ones(64))
    log = gatelog.read(write_log(tmp_path / "dp0_pp0.gatelog", loads, labels=["001"] * 300))
    parts = [
        log.where((np.arange(300) >= at) & (np.arange(300) < at + 7)) for at in range(0, 300, 7)
    ]
    whole, parted = shown("001", log), shown("001", *parts)
    assert (whole.tokens, parted.tokens) == (1200, 1200)
    assert parted.imbalance().per_step_cv == pytest.approx(whole.imbalance().per_step_cv)
    assert parted.imbalance().expert_loads == whole.imbalance().expert_loads

    tracemalloc.start()
    routing = shown("001", *parts)
    once, _ = tracemalloc.get_traced_memory()
    for part in parts * 9:
        routing.add(part)
    gc.collect()  # garbage is not kept
    tenfold, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert routing.tokens == 12_000
    assert tenfold - once < log.loads.nbytes / 4  # of nine times as many bytes that went by
