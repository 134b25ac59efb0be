"""The work of a step, worked out by hand and against kernel times measured on one H200."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.synthetic import routed, write_log

from core.recorder.gatescope_recorder.kernel import Kernel, Tiling
from core.routing import work
from core.routing.measured_folder import measure_folder

KERNEL = Kernel(
    "TRITON",
    sms=10,
    experts=4,
    local_experts=4,
    top_k=2,
    columns=(640, 256),
    tilings=(Tiling(8, 16, 64), Tiling(64, 32, 128)),
    source="tuned",
)
GPU = Path(__file__).parents[3] / "shared" / "gpu"
needs_points = pytest.mark.skipif(
    not GPU.is_dir(), reason="the kernel's measured times are not beside this checkout"
)


def of(loads: list[list[int]], placement: tuple[int, ...] = (), kernel: Any = KERNEL) -> work.Work:
    """Steps of one layer, top-2."""
    x = np.array(loads)[:, None]
    return work.of_steps(x, x.sum(axis=(1, 2)) // 2, placement, kernel)


def shown(values: Any) -> Any:
    return None if values is None else values.tolist()


def test_tiles_and_waves_by_hand() -> None:
    """8 tokens: blocks 16 × 64, 10 and 4 columns of blocks; 40 tokens: 32 × 128, 5 and 2."""
    found = of([[0, 1, 7, 8], [40, 33, 5, 2]])
    assert shown(found.tokens) == [[[16]], [[80]]]
    assert shown(found.active) == [[[3]], [[4]]]
    assert shown(found.tiles) == [[[3]], [[6]]]
    assert shown(found.padded) == [[[32]], [[112]]]
    assert shown(found.first_waves) == [[[3]], [[3]]]  # 30 and 30 blocks on 10 SMs
    assert shown(found.second_waves) == [[[2]], [[2]]]  # 12 and 12
    assert shown(found.amount) == [[[3 * 256 + 2 * 320]], [[3 * 256 + 2 * 320]]]


def test_padding_rows_wake_no_more_experts_than_are_idle_and_than_they_choose() -> None:
    """Top-2 of 4. One idle expert in the first two steps, two in the last."""
    found = of([[0, 1, 7, 8], [0, 1, 7, 8], [0, 0, 8, 8]])
    most = work.most_woken(found, KERNEL, np.array([8, 8, 8]), np.array([3, 0, 1]))
    assert shown(most.active) == [[[4]], [[3]], [[4]]]
    assert shown(most.tiles) == [[[4]], [[3]], [[4]]]
    assert shown(most.first_waves) == [[[4]], [[3]], [[4]]]  # 10 blocks a tile on 10 SMs
    assert shown(most.second_waves) == [[[2]], [[2]], [[2]]]  # 4


def test_a_full_block_is_one_tile_and_a_row_more_is_two() -> None:
    found = of([[32, 32, 8, 8], [33, 31, 8, 8], [0, 0, 40, 40]])
    assert shown(found.tiles) == [[[4]], [[5]], [[4]]]


def test_each_rank_computes_its_own_experts() -> None:
    found = of([[40, 33, 5, 2]], placement=(0, 1, 1, 0))
    assert shown(found.tokens) == [[[42, 38]]]
    assert shown(found.tiles) == [[[3, 3]]]
    assert shown(found.first_waves) == [[[2, 2]]]
    busiest = found.busiest()  # waves and active experts are equal: the tokens decide
    assert shown(busiest.tokens) == [[42]]
    assert shown(busiest.padded) == [[3 * 32 - 42]]


def test_the_busiest_rank_is_not_the_one_with_most_tokens() -> None:
    """Rank 0 has 64 tokens in 2 full tiles, rank 1 has 16 in 4."""
    kernel = Kernel("TRITON", sms=1, columns=(64, 32), tilings=(Tiling(64, 32, 32),), top_k=2)
    loads = np.array([[[32, 32, 0, 0, 4, 4, 4, 4]]])
    found = work.of_steps(loads, np.array([40]), (0, 0, 0, 0, 1, 1, 1, 1), kernel).busiest()
    assert (shown(found.tokens), shown(found.tiles)) == ([[16]], [[4]])


def test_without_a_tiling_only_experts_and_tokens_are_known() -> None:
    for kernel in (None, Kernel("FLASHINFER_CUTLASS", sms=132)):
        found = of([[0, 1, 7, 8]], placement=(0, 0, 1, 1), kernel=kernel)
        assert shown(found.active) == [[[1, 2]]]
        assert found.tiles is found.padded is found.first_waves is found.amount is None
        assert shown(found.busiest().tokens) == [[15]]


def test_a_tiling_without_columns_counts_tiles_but_no_waves() -> None:
    kernel = Kernel("CPU", tilings=(Tiling(4096, 16),))
    found = of([[0, 1, 17, 8]], kernel=kernel)
    assert shown(found.tiles) == shown(found.amount) == [[[4]]]
    assert found.first_waves is None


def test_fair_loads_are_those_of_a_fair_router() -> None:
    """Every expert's load is binomial, and a token never gets an expert twice: the covariance of
    two loads is n k (k - 1)/(E (E - 1)) - n (k/E)²."""
    x = work.fair_loads(30, experts=8, top_k=2, draws=40_000)
    assert (x.sum(axis=1) == 60).all()
    assert x.max() <= 30
    assert x.mean(axis=0) == pytest.approx(np.full(8, 7.5), abs=0.06)
    cov = np.cov(x.T)
    assert np.diag(cov) == pytest.approx(np.full(8, 30 * 0.25 * 0.75), abs=0.2)
    apart = [cov[a, b] for a, b in itertools.combinations(range(8), 2)]
    assert np.mean(apart) == pytest.approx(30 * (2 / 56 - 1 / 16), abs=0.02)
    every = work.fair_loads(5, experts=4, top_k=4, draws=3)
    assert (every == 5).all()


def test_the_fair_amount_is_the_binomial_mean() -> None:
    """Of tiles: E · Σ_x P(x) ⌈x/16⌉ with x binomial (n, k/E)."""
    kernel = Kernel("CPU", tilings=(Tiling(4096, 16),))
    chance = [math.comb(64, x) * 0.25**x * 0.75 ** (64 - x) for x in range(65)]
    exact = 8 * sum(p * math.ceil(x / 16) for x, p in enumerate(chance))
    (found, again) = work.fair_amounts(np.array([64, 64]), 8, 2, (), kernel)
    assert found == again == pytest.approx(exact, rel=0.01)


# --- against measured times ---

BLOCKS = {  # of the sizes that were measured, from vLLM 0.25.1's tables and its default rule
    "TP1": {8: (16, 128), 16: (16, 64), 32: (16, 128), 96: (32, 128), 192: (64, 128)},
    "TP2": {8: (32, 128), 32: (16, 128), 64: (32, 128), 192: (64, 128)},
    "TP4": {8: (16, 64), 32: (16, 128), 96: (64, 128), 192: (64, 64)},
    "EP": {32: (16, 64), 64: (32, 64), 96: (32, 128), 512: (64, 128), 2048: (128, 128)},
}
LARGE = (128, 256)  # TP, from 256 tokens on


def kernel_of(shape: str, inner: int) -> Kernel:
    table = BLOCKS.get(shape) or BLOCKS["EP"]
    tilings = tuple(Tiling(size, *blocks) for size, blocks in table.items())
    if shape in BLOCKS:
        tilings += (Tiling(4096, *LARGE),)
    return Kernel("TRITON", sms=132, top_k=2, columns=(2 * inner, 4096), tilings=tilings)


def explained(points: list[dict[str, Any]], kernel: Kernel, placement: tuple[int, ...]) -> float:
    """R² of a line in active experts and both GEMMs' waves, of rank 0."""
    loads = np.array([point["loads"] for point in points])[:, None]
    of_rank = work.of_steps(loads, np.array([p["M"] for p in points]), placement, kernel)
    assert of_rank.first_waves is not None
    assert of_rank.second_waves is not None
    measures = (of_rank.active, of_rank.first_waves, of_rank.second_waves)
    design = np.column_stack([np.ones(len(points)), *(m[:, 0, 0] for m in measures)])
    time = np.array([point["us"] for point in points])
    left = time - design @ np.linalg.lstsq(design, time, rcond=None)[0]
    return float(1 - left.var() / time.var())


@needs_points
def test_active_experts_and_waves_explain_the_measured_times() -> None:
    """As published in the reference, by number of tokens."""
    points = json.loads((GPU / "tile_cost.json").read_text())
    published = {
        "TP1": {64: 0.98, 96: 0.996, 128: 0.994, 192: 0.994, 256: 0.986, 512: 0.894, 1024: 0.940},
        "TP2": {64: 0.99, 96: 0.995, 128: 0.998, 192: 0.993, 256: 0.989, 512: 0.907, 1024: 0.850},
        "TP4": {64: 0.99, 96: 0.994, 128: 0.994, 192: 0.87, 256: 0.998, 512: 0.909, 1024: 0.907},
    }
    for shape, by_size in published.items():
        own = [point for point in points if point["shape"] == shape]
        kernel = kernel_of(shape, own[0]["inter"])
        for point in own:
            tiling = kernel.tiling(point["M"])
            assert tiling
            assert tiling.block_m == point["block_m"]
        for size, r2 in by_size.items():
            found = explained([point for point in own if point["M"] == size], kernel, ())
            assert found == pytest.approx(r2, abs=0.006), (shape, size)


@needs_points
def test_the_same_holds_for_a_rank_with_experts_of_its_own() -> None:
    points = json.loads((GPU / "tile_cost_ep.json").read_text())
    published = {
        "EP2": [0.999, 0.999, 0.994, 0.994, 0.983, 0.980, 0.979, 0.973, 0.966, 0.984, 0.947, 0.993],
        "EP4": [0.999, 1.0, 0.996, 0.998, 0.990, 0.955, 0.963, 0.879, 0.976, 0.975, 0.985, 0.991],
    }
    for shape, all_sizes in published.items():
        own = [point for point in points if point["shape"] == shape]
        ranks = 8 // own[0]["local"]
        placement = tuple(e * ranks // 8 for e in range(8))
        kernel = kernel_of(shape, own[0]["inter"])
        sizes = sorted({point["M"] for point in own})
        for size, r2 in zip(sizes, all_sizes, strict=True):
            same = [point for point in own if point["M"] == size]
            tiling = kernel.tiling(size)
            assert tiling
            config = same[0]["config"]
            assert (tiling.block_m, tiling.block_n) == (
                config["BLOCK_SIZE_M"],
                config["BLOCK_SIZE_N"],
            )
            assert explained(same, kernel, placement) == pytest.approx(r2, abs=0.006), (shape, size)


# --- through gate logs ---


def test_a_run_shows_its_busiest_ranks_by_phase(tmp_path: Path) -> None:
    """Two decode steps of 8 tokens and one prefill step of 40, as above, on two ranks."""
    loads = np.array([[[0, 1, 7, 8]], [[0, 1, 7, 8]], [[40, 33, 5, 2]]])
    write_log(
        tmp_path / "dp0_pp0.gatelog",
        loads,
        prefill=[0, 0, 40],
        ranks=2,
        placement=(0, 0, 1, 1),
        kernel=KERNEL,
    )
    found, problems = measure_folder(tmp_path)
    assert problems == []
    measured = found["gates_logs_001"]
    assert measured.kernel == "TRITON, tuned"
    assert measured.prefill
    assert measured.decode
    decode, prefill = measured.decode.busiest_rank, measured.prefill.busiest_rank
    assert decode
    assert prefill
    # rank 1 of the decode steps: 15 tokens, 2 tiles of 16 rows, 20 and 8 blocks on 10 SMs
    assert (decode.tokens, decode.active_experts, decode.tiles) == (15, 2, 2)
    assert (decode.first_waves, decode.second_waves) == (2, 1)
    assert decode.padded_share == pytest.approx(17 / 32)
    # rank 0 of the prefill step: 73 tokens, 4 tiles of 32, 20 and 8 blocks
    assert (prefill.tokens, prefill.tiles, prefill.first_waves) == (73, 4, 2)
    assert prefill.padded_share == pytest.approx(55 / 128)
    amount, fair = 2 * 256 + 320, work.fair_amounts(np.array([8, 40]), 4, 2, (0, 0, 1, 1), KERNEL)
    assert decode.work_over_fair == pytest.approx(amount / fair[0])
    assert prefill.work_over_fair == pytest.approx(amount / fair[1])
    whole = measured.busiest_rank
    assert whole
    assert whole.work_over_fair == pytest.approx(3 * amount / (2 * fair[0] + fair[1]))
    assert whole.tokens == pytest.approx((15 + 15 + 73) / 3)


def test_a_fair_router_is_at_1(tmp_path: Path) -> None:
    """And its interval holds 1; a router with a hot expert lies above, at a batch that needs more
    tiles for it."""
    rng = np.random.default_rng(3)
    for name, weights in (("fair", np.ones(8)), ("hot", np.array([12.0, 1, 1, 1, 1, 1, 1, 1]))):
        loads = routed(rng, [64] * 60, 4, weights)
        kernel = Kernel("TRITON", sms=4, columns=(512, 256), tilings=(Tiling(64, 16, 64),))
        write_log(
            tmp_path / name / "dp0_pp0.gatelog",
            loads,
            ranks=4,
            placement=(0, 0, 1, 1, 2, 2, 3, 3),
            kernel=kernel,
        )
    fair, hot = (
        measure_folder(tmp_path / name)[0]["gates_logs_001"].busiest_rank
        for name in ("fair", "hot")
    )
    assert fair
    assert hot
    assert fair.work_over_fair == pytest.approx(1, abs=0.02)
    assert fair.work_over_fair_interval
    assert fair.work_over_fair_interval[0] < 1 < fair.work_over_fair_interval[1]
    assert hot.work_over_fair_interval
    assert hot.work_over_fair_interval[0] > 1


def test_what_is_not_known_has_a_reason(tmp_path: Path) -> None:
    for name, kernel, reason in (
        ("old", None, "the gate log does not name the MoE kernel"),
        ("cpu", Kernel("CPU"), "the kernel, CPU, publishes no tiling"),
    ):
        write_log(tmp_path / name / "dp0_pp0.gatelog", np.array([[[0, 3, 7, 8]]]), kernel=kernel)
        found = measure_folder(tmp_path / name)[0]["gates_logs_001"].busiest_rank
        assert found
        assert (found.active_experts, found.tiles, found.work_over_fair) == (3, None, None)
        assert found.reason == reason


def test_eplb_leaves_the_ranks_own_experts_unknown(tmp_path: Path) -> None:
    write_log(tmp_path / "dp0_pp0.gatelog", np.array([[[0, 3, 7, 8]]]), ranks=2, kernel=KERNEL)
    found = measure_folder(tmp_path)[0]["gates_logs_001"].busiest_rank
    assert found
    assert found.active_experts is None
    assert found.reason == "EPLB moves experts from rank to rank"
