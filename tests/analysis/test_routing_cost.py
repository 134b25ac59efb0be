"""What a dataset's routing costs over a fair router: by hand, with a price list made by a rule."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.kernel_points import h200_list, needs_points
from support.synthetic import write_log

from core.analysis import placed, routing_cost, step_sample
from core.analysis.cost_model import PRICE, CostModel
from core.analysis.step_sample import StepSample
from core.errors import FileError
from core.recorder.gatescope_recorder.kernel import Kernel, Tiling
from core.routing import price
from core.routing.price import PriceList, Prices, Timed
from core.stats.estimate import Estimate

# 4 experts on 2 ranks, top-1. A rank pays 100 + 10 for an active expert + 4 for a wave, and a tile
# of 4 rows is a wave: one SM, one block of columns, in the first GEMM; none in the second.
KERNEL = Kernel(
    "test",
    sms=1,
    experts=4,
    local_experts=2,
    top_k=1,
    columns=(64, 64),
    tilings=(Tiling(64, 4, 64),),
    source="tuned",
)
MODEL = CostModel(
    phase="decode",
    by=PRICE,
    terms={"fixed": Estimate(1000.0), "price_us": Estimate(2.0, (1.9, 2.1))},
)


def prices() -> Prices:
    return Prices(KERNEL, np.array([8]), np.array([[100.0, 10.0, 4.0, 0.0]]))


def sample(
    folder: Path, loads: list[int], steps: int = 40, kernel: Kernel | None = None
) -> StepSample:
    folder.mkdir(exist_ok=True)
    write_log(
        folder / "dp0_pp0.gatelog",
        np.array([[loads]] * steps),
        ranks=2,
        placement=(0, 0, 1, 1),
        top_k=1,
        kernel=kernel,
    )
    return step_sample.read([folder], prices=prices())


def fair(folder: Path) -> dict[str, float]:
    """The fair router's figures at 8 tokens, from all ways to route 8 tokens to 4 experts."""
    rng = np.random.default_rng(5)
    loads = rng.multinomial(8, [0.25] * 4, size=100_000)
    active, tiles = loads > 0, -(-loads // 4)
    by_rank = [
        100 + 10 * active[:, own].sum(axis=1) + 4 * tiles[:, own].sum(axis=1)
        for own in (slice(0, 2), slice(2, 4))
    ]
    return {
        "price": float(np.max(by_rank, axis=0).mean()),
        "mean": float(np.mean(by_rank)),
        "weights": float(10 * active.sum(axis=1).mean() / 2),
    }


def test_the_parts_are_what_they_are_by_hand(tmp_path: Path) -> None:
    """8 tokens, 7 + 1 on rank 0: 2 active and 3 tiles there, none on rank 1."""
    known = fair(tmp_path)
    (found,) = routing_cost.of_datasets(sample(tmp_path, [7, 1, 0, 0]), MODEL)
    busiest, mean, weights = 100 + 20 + 12, (132 + 100) / 2, 10
    over = 2 * (busiest - known["price"])
    assert found.over_fair.value == pytest.approx(over, abs=1.5)
    assert found.share.value == pytest.approx(over / 10, abs=0.15)  # of a step of 1 ms, in %
    assert found.waiting
    assert found.weights
    assert found.padding
    waiting = 2 * ((busiest - mean) - (known["price"] - known["mean"]))
    assert found.waiting.value == pytest.approx(waiting, abs=1.5)
    assert found.weights.value == pytest.approx(2 * (weights - known["weights"]), abs=1.5)
    parts = [part.value or 0 for part in (found.waiting, found.weights, found.padding)]
    assert sum(parts) == pytest.approx(found.over_fair.value)


def test_what_the_models_cost_leaves_open_widens_the_interval(tmp_path: Path) -> None:
    """All steps are alike, so the interval is that of 2 ± 0.1 µs alone: ± 5 %."""
    (found,) = routing_cost.of_datasets(sample(tmp_path, [7, 1, 0, 0]), MODEL)
    low, high = found.over_fair.interval or (0.0, 0.0)
    value = found.over_fair.value or 0.0
    assert [low, high] == pytest.approx([0.95 * value, 1.05 * value])


def test_what_padding_may_have_woken_opens_the_upper_end(tmp_path: Path) -> None:
    """8 tokens run as 9: the row more can wake one expert of rank 1, for 110 + 4, which leaves it
    below rank 0; with one expert there the other, for 14 µs a layer."""
    padded = replace(KERNEL, graphs=(9,))
    closed, opened = (
        sample(tmp_path / name, [8, 0, 0, 0], kernel=kernel)
        for name, kernel in (("closed", KERNEL), ("open", padded))
    )
    assert not closed.open.any()
    assert opened.open.all()
    (tight,), (wide,) = (routing_cost.of_datasets(of, MODEL) for of in (closed, opened))
    assert wide.over_fair.value == tight.over_fair.value
    low, high = tight.over_fair.interval or (0.0, 0.0)
    assert wide.over_fair.interval == pytest.approx((low, high + 2 * 14))


def test_the_cheapest_placement_parts_the_two_busy_experts(tmp_path: Path) -> None:
    """4 + 4 tokens on one rank cost 100 + 20 + 8, on two ranks 100 + 10 + 4 each."""
    best, *others = placed.of_sample(sample(tmp_path, [4, 4, 0, 0]), MODEL, prices())
    assert best.saved
    assert best.saved.value == pytest.approx(2 * 14)
    assert {one.name: one.saved.value for one in others if one.saved}["linear"] == 0.0


def test_what_another_dataset_favours_saves_nothing(tmp_path: Path) -> None:
    """Dataset a keeps experts 0 and 1 busy, b the experts 0 and 2; each is run twice. Parted by
    what a does, b's busy pair comes together, and the other way round: no repeat of the judged
    dataset helped to make the placement. With halves of time, both would have been seen."""
    busy = {"a": [4, 4, 0, 0], "b": [4, 0, 4, 0]}
    labels = [label for label in ("a", "b", "a-r2", "b-r2") for _ in range(30)]
    loads = [[busy[label.partition("-")[0]]] for label in labels]
    write_log(
        tmp_path / "dp0_pp0.gatelog",
        np.array(loads),
        labels=labels,
        ranks=2,
        placement=(0, 0, 1, 1),
        top_k=1,
    )
    found = placed.of_sample(step_sample.read([tmp_path], prices=prices()), MODEL, prices())
    packed = next(one for one in found if one.name == "packed")
    assert packed.saved
    assert (packed.saved.value or 0) <= 0


def test_too_few_steps_or_no_ranks_have_no_placements(tmp_path: Path) -> None:
    assert placed.of_sample(sample(tmp_path, [4, 4, 0, 0], steps=20), MODEL, prices()) == []
    assert routing_cost.of_datasets(sample(tmp_path / "b", [8, 0, 0, 0], steps=19), MODEL) == []


def test_prices_of_another_model_are_refused(tmp_path: Path) -> None:
    write_log(tmp_path / "dp0_pp0.gatelog", np.full((2, 1, 8), 3))
    with pytest.raises(FileError, match="a kernel with 4 experts, and a gate log with 8"):
        step_sample.read([tmp_path], prices=prices())


@pytest.mark.parametrize(("tokens", "named"), [(16, False), (9, True)])
def test_an_edge_of_a_tile_is_named(tmp_path: Path, tokens: int, named: bool) -> None:
    """One expert of blocks of 8 rows, and nothing but tiles costs: 9 tokens are two, 8 are one."""
    kernel = Kernel(
        "test",
        sms=1,
        experts=1,
        local_experts=1,
        top_k=1,
        columns=(64, 64),
        tilings=(Tiling(64, 8, 64),),
        source="tuned",
    )
    write_log(tmp_path / "dp0_pp0.gatelog", np.full((30, 1, 1), tokens), top_k=1)
    list_ = PriceList("GPU", "test", kernel, [Timed(8, [[8], [16]], [4.0, 8.0])])
    fitted = price.fit(list_)
    edges = routing_cost.edges(step_sample.read([tmp_path], prices=fitted), fitted)
    found = edges[0]
    assert (found.better < tokens) == named
    if named:
        assert (found.tokens, found.better) == (9, 8)
        assert [found.rows, found.better_rows] == pytest.approx([16 / 9, 1.0])
        assert found.saved == pytest.approx(1 - 9 / 16)


@needs_points
def test_repeated_prompts_save_and_edges_cost_on_one_h200() -> None:
    """By what was measured there (skew-cost.md, 2): at 30 requests a CV of 1.4 saves a third."""
    from support.kernel_points import POINTS

    fitted = price.fit(h200_list())
    found = step_sample.read([POINTS / "h200-tp1-cost"], prices=fitted, forced=True)
    from core.analysis import cost_model

    model = cost_model.fit(found, "decode")
    natural = step_sample.read([POINTS / "h200-tp1-cost"], prices=fitted)
    share = {one.dataset: one.share.value or 0 for one in routing_cost.of_datasets(natural, model)}
    assert share["902"] < -30
    assert abs(share["256"]) < 0.5
