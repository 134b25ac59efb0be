"""Figures of cells: which ones stand on the frontier, and what is drawn against the load."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from bench.sweep import simulated
from core.analysis import comparand
from core.analysis.comparand import Comparand
from core.errors import NoDataError, UsageError
from core.experiment import events
from core.experiment.tables import Backend
from core.files import formatted
from core.plots import cells, png, text
from core.plots.figure import marked
from core.routing.busiest import BusiestRank
from core.routing.imbalance import Imbalance
from core.rundir import result
from core.validity import verdict

# max_num_seqs, tensor_parallel → TPOT of two starts; throughput is 1000/TPOT.
MADE = {(8, 1): (10.0, 10.2), (16, 1): (8.0, 8.0), (16, 4): (4.0, 4.0), (32, 2): (5.0, 5.1)}


@pytest.fixture
def made(tmp_path: Path) -> list[Comparand]:
    folder = {}
    for (seqs, ranks), tpots in MADE.items():
        backend = Backend(name="baseline", max_num_seqs=seqs, tensor_parallel=ranks)
        values = {n: {"001": [tpot]} for n, tpot in enumerate(tpots, 1)}
        folder[f"{seqs}x{ranks}"] = (simulated.config_of([backend]), {"baseline": values})
    return comparand.read(simulated.sweep(tmp_path / "sweep", folder))


def test_the_frontier_is_of_the_cells_that_none_beats_in_both(made: list[Comparand]) -> None:
    """Per GPU: 8x1 99, 16x1 125, 16x4 62.5, 32x2 99 tok/s."""
    found = cells.frontier(made, "mean_tpot_ms")
    assert [one.name for one in found] == ["16x4", "32x2", "16x1"]


def test_a_point_is_the_mean_of_its_starts_per_rank(made: list[Comparand]) -> None:
    (drawn,) = cells.pareto(made, "mean_tpot_ms")
    (points,) = drawn.groups
    place = points.labels.index("32x2")
    assert points.x[place] == pytest.approx((5.0 * 5.1) ** 0.5)
    assert points.y[place] == pytest.approx((200.0 * 1000 / 5.1) ** 0.5 / 2)
    assert points.x_interval is not None
    assert points.x_interval.min() >= 4.0 / cells.FAR  # cut: two starts reach far
    assert "n = 4 cells, starts of each: 2" in drawn.note
    assert "16x4; 32x2; 16x1" in drawn.note


def test_energy_is_drawn_where_it_is_known(made: list[Comparand], tmp_path: Path) -> None:
    """Joules per token: 8x1 2.0 (10 ms), 16x4 5.0 (4 ms), 32x2 6.0 (5 ms); 16x1 has none."""
    for one, joules in zip(made, (2.0, None, 5.0, 6.0), strict=True):
        for file in (one.path / "baseline" / "results_json").iterdir():
            changed = msgspec.structs.replace(result.read(file), j_per_output_token=joules)
            file.write_bytes(formatted(changed))
    again = [cell for one in made for cell in comparand.read(one.path)]
    drawn = cells.pareto(again, "mean_tpot_ms")
    assert [panel.title for panel in drawn] == [
        "throughput against mean TPOT",
        "energy per output token against mean TPOT",
    ]
    (points,), (best,) = drawn[1].groups, drawn[1].curves
    assert points.y == pytest.approx([2, 5, 6])  # of a token already, whatever the ranks
    assert best.x == pytest.approx([4, (10 * 10.2) ** 0.5])
    assert best.y == pytest.approx([5, 2])  # 32x2 takes longer than 16x4, and more
    assert "1 cells without both values" in drawn[1].note
    assert "energy per output token, J" in text.draw(drawn[1], 90, 20, colour=False)
    assert png.write(drawn, tmp_path / "p.png").stat().st_size > 5000


def test_it_is_drawn_in_the_terminal_and_as_a_picture(
    made: list[Comparand], tmp_path: Path
) -> None:
    (drawn,) = cells.pareto(made, "mean_tpot_ms")
    assert "throughput against mean TPOT" in text.draw(drawn, 90, 20, colour=False)
    assert png.write([drawn], tmp_path / "p.png").stat().st_size > 5000


def test_a_cell_that_a_rule_calls_invalid_marks_the_figure(made: list[Comparand]) -> None:
    assert verdict.invalid_rules(made) == ""
    told = events.BackendReady(backend="baseline", seconds=1, ran={}, mismatches=["triton: auto"])
    with (made[1].path / "events.jsonl").open("ab") as journal:
        journal.write(events.encode(told) + b"\n")
    rules = verdict.invalid_rules(made)
    assert rules == f"as requested ({made[1].name})"
    (drawn,) = (marked(panel, rules) for panel in cells.pareto(made, "mean_tpot_ms"))
    assert f"INVALID: {rules}" in text.draw(drawn, 90, 20, colour=False)


def test_imbalance_goes_with_the_load(made: list[Comparand]) -> None:
    for one in made:
        for file in (one.path / "baseline" / "results_json").iterdir():
            seqs = one.asked.max_num_seqs
            busiest = BusiestRank(active_experts=seqs / 4)
            measured = Imbalance(excess_cv=0.4, rank_imbalance=1 + 1 / seqs, busiest_rank=busiest)
            changed = msgspec.structs.replace(result.read(file), measured_imbalance=measured)
            file.write_bytes(formatted(changed))
    again = [cell for one in made for cell in comparand.read(one.path)]
    excess, active, rank = cells.against_load(again)
    assert active.curves[0].y == pytest.approx([2, 4])
    assert excess.x_label == "requests of a step at most (max_num_seqs)"
    (curve,) = rank.curves  # the cells of four and of two ranks have no other load
    assert curve.name == "baseline, tensor_parallel=1"
    assert curve.x.tolist() == [8, 16]
    assert curve.y == pytest.approx([1 + 1 / 8, 1 + 1 / 16])
    assert curve.low is not None
    assert np.isfinite(curve.low).tolist() == [True, True]


def test_what_cannot_be_drawn_is_said(made: list[Comparand]) -> None:
    with pytest.raises(UsageError, match="pareto takes one of"):
        cells.pareto(made, "decode_step_ms")
    with pytest.raises(NoDataError, match="do not differ in load"):
        cells.against_load(made[1:3])
    with pytest.raises(NoDataError, match="no routing was measured"):
        cells.against_load(made)
