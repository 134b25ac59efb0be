"""Expert loads worked out by hand, and followed while a log grows."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.staged import RECORDED

from core.routing import folder as gate_folder
from core.routing import imbalance
from core.routing.gatelog import GateLog
from core.routing.layers import Totals
from tui.model.loads import Loads


def log(
    loads: list[list[list[int]]], tokens: list[int], placement: tuple[int, ...] = ()
) -> GateLog:
    """A log of one run; `loads[step][layer][expert]`."""
    return GateLog(np.array(loads), {"tokens": np.array(tokens)}, {}, top_k=1, placement=placement)


def test_layer_measures_by_hand() -> None:
    totals = Totals()
    totals.add(log([[[3, 1]], [[1, 3]]], [4, 4], placement=(0, 1)))
    (layer,) = totals.layers()
    # Each step: mean 2, std 1, so CV ½; floor² = 2 · (¾·¼ + ¼·¾) / 3 = ¼, so CV² - floor² = 0:
    # nothing above chance.
    assert layer.cv == pytest.approx(0.5)
    assert layer.floor == pytest.approx(0.5)
    assert layer.excess is None
    assert layer.reason == "at the noise floor over 2 steps of two tokens or more"
    assert layer.rank == pytest.approx(1.5)  # 3 of a mean of 2
    assert layer.shares == (0.5, 0.5)


def test_excess_is_what_is_above_the_floor() -> None:
    totals = Totals()
    totals.add(log([[[8, 0]], [[8, 0]]], [8, 8]))
    (layer,) = totals.layers()
    # CV 1 in every step; floor² = 2 · 0 / 7 = 0.
    assert layer.excess == pytest.approx(1.0)
    assert layer.rank is None
    assert (layer.layer, layer.hottest) == (0, 0)


def test_layers_are_called_by_the_models_own_numbers() -> None:
    totals = Totals()
    totals.add(replace(log([[[8, 0], [4, 4]]], [8]), layer_numbers=(3, 4)))
    assert [layer.layer for layer in totals.layers()] == [3, 4]


def test_steps_of_one_token_have_no_floor() -> None:
    totals = Totals()
    totals.add(log([[[1, 0]], [[0, 1]]], [1, 1]))
    (layer,) = totals.layers()
    assert layer.floor is None
    assert layer.excess is None
    assert "fewer than two steps" in layer.reason
    assert math.isclose(layer.cv, 1.0)


def test_parts_add_up_to_the_whole(tmp_path: Path) -> None:
    """A recorded run read as it grew: the same as core's own measure of the whole log."""
    folder = tmp_path / "baseline" / "gate_logs"
    folder.mkdir(parents=True)
    whole = (RECORDED / "demo" / "baseline" / "gate_logs" / "dp0_pp0.gatelog").read_bytes()
    loads = Loads(tmp_path)
    for end in (200, len(whole) // 3, 2 * len(whole) // 3, len(whole)):
        (folder / "dp0_pp0.gatelog").write_bytes(whole[:end])
        loads.read()
    read = gate_folder.read(folder)
    for label in ("001", "002"):
        own = read.of(label)
        load = loads.of(f"baseline/{label}")
        assert load.steps == len(own.tokens)
        assert load.tokens == own.tokens.sum()
        mean_cv = float(np.mean([layer.cv for layer in load.layers]))
        assert mean_cv == pytest.approx(
            float(imbalance.cv(own.loads.astype(float)).mean()), rel=1e-12
        )
        for layer in load.layers:
            by_expert = own.loads[:, layer.layer].sum(axis=0)
            assert layer.shares == pytest.approx(tuple(by_expert / by_expert.sum()))


def test_recent_steps_only(tmp_path: Path) -> None:
    shutil.copytree(RECORDED / "demo", tmp_path / "demo")
    loads = Loads(tmp_path / "demo")
    loads.read()
    whole, recent = loads.of("all2all/002"), loads.of("all2all/002", recent=True)
    assert 64 <= recent.steps < whole.steps
    assert loads.of("all2all/nothing").layers == ()


def test_a_log_that_is_none_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "baseline" / "gate_logs"
    folder.mkdir(parents=True)
    (folder / "dp0_pp0.gatelog").write_bytes(b"what is this, then, if not a gate log")
    loads = Loads(tmp_path)
    loads.read()
    assert "not a gate log" in loads.of("baseline/001").problem
