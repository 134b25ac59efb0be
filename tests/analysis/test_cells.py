"""Which start of a sweep comes next, and when a cell is known well enough."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.sweep import simulated
from core import cli
from core.analysis import cells, limits, matrix
from core.analysis.cells import CellState
from core.analysis.results import Results
from core.errors import FileError
from core.experiment import cell
from core.experiment.cell import Cell
from core.experiment.plan import Run
from core.experiment.state import Phase, RunState, Snapshot
from core.experiment.sweep import Until
from core.experiment.tables import Backend
from core.rundir import sweep, tasks
from core.rundir.sweep import SweepFile

UNTIL = Until(half_width_pct=10, max_starts=4)


def state(slug: str, *phases: Phase, most: int = 3, tpots: tuple[float, ...] = ()) -> CellState:
    """A cell whose starts have one run each, in these phases; those that are done took `tpots`."""
    config = simulated.config_of([Backend(name="b")], starts=most)
    runs = {
        f"b/{n}": RunState(Run("b", "001", str(n), "f", start=n), phase)
        for n, phase in enumerate(phases, 1)
    }
    done = frozenset(run for run, own in runs.items() if own.phase == "done")
    results = {
        f"001-s{n}" if n > 1 else "001": simulated.result("b", "001", n, tpot)
        for n, tpot in enumerate(tpots, 1)
    }
    group = Results("b", results, {}, {}) if results else None
    one = Cell(slug=slug, settings={"experiment.seed": int(slug)}, config=config)
    return CellState(one, Path(slug), Snapshot(runs=runs), done, group)


def asked(*states: CellState, until: Until | None = None) -> SweepFile:
    return SweepFile(
        name="s",
        started="",
        seed=5,
        metric="mean_tpot_ms",
        cells=[s.cell for s in states],
        until=until,
    )


def following(
    *states: CellState, tried: tuple[tuple[str, int], ...] = (), retry: bool = False
) -> tuple[str, int] | None:
    by_slug = {s.cell.slug: s for s in states}
    wanted = limits.wanted_starts(asked(*states), by_slug)
    found = cells.next_start(asked(*states), by_slug, wanted, tried, retry=retry)
    return found and (found[0].slug, found[1])


def test_every_cell_has_a_start_before_any_has_its_next() -> None:
    begun = state("1", "done", "queued", "queued")
    assert following(begun, state("2")) == ("2", 1)
    both = (begun, state("2", "done", "queued", "queued"))
    first = cell.order([s.cell for s in both], 2, seed=5)[0].slug
    assert following(*both) == (first, 2)


def test_what_failed_or_was_cut_off_is_run_again_but_once_a_session() -> None:
    failed = state("1", "failed", "done", "done")
    assert following(failed) == ("1", 1)
    assert following(failed, tried=(("1", 1),)) is None
    assert following(state("1", "done", "running", "done")) == ("1", 2)


def test_what_was_cancelled_is_run_again_on_demand() -> None:
    cancelled = state("1", "done", "cancelled", "done")
    assert following(cancelled) is None
    assert following(cancelled, retry=True) == ("1", 2)


@pytest.mark.parametrize(
    ("tpots", "wanted", "shown"),
    [
        ((), 1, "queued"),
        ((10.0,), 2, "1 of 2 starts"),
        ((10.0, 10.0), 2, "done"),
        ((10.0, 11.0), 3, "2 of 3 starts"),
        ((10.0, 11.0, 10.5), 4, "3 of 4 starts"),
        # Student's factor at three degrees and 98.33 % is 4.86: 1.0 % · 4.86 / 2 is within.
        ((10.0, 10.1, 10.2, 10.0), 4, "done"),
        ((10.0, 12.0, 9.0, 11.0), 4, "not within 10 % after 4 starts"),
    ],
)
def test_a_cell_is_given_starts_until_it_is_known(
    tpots: tuple[float, ...], wanted: int, shown: str
) -> None:
    phases: list[Phase] = ["done" if n < len(tpots) else "queued" for n in range(4)]
    one = state("1", *(phases if tpots else ()), most=4, tpots=tpots)
    assert cells.wanted_starts(one, UNTIL) == wanted
    assert matrix.state_of(asked(one, until=UNTIL), one, range(1, wanted + 1)) == shown


def test_a_cell_of_which_a_run_failed_says_so_beside_its_value() -> None:
    states = {
        "1": state("1", "done", "done", most=2, tpots=(10.0, 10.1)),
        "2": state("2", "done", "failed", most=2, tpots=(20.0,)),
    }
    found = matrix.entries(asked(*states.values()), states)
    assert [one.state for one in found] == ["done", "failed"]
    assert found[0].text.endswith("*")
    assert found[1].text == "20 (a run failed) ~"


def test_a_sweep_is_run_by_one_gatescope_at_a_time(tmp_path: Path) -> None:
    with (
        sweep.locked(tmp_path / "s"),
        pytest.raises(FileError, match="in use by another gatescope"),
        sweep.locked(tmp_path / "s"),
    ):
        pass
    with sweep.locked(tmp_path / "s"):
        pass


def test_a_cell_and_its_sweep_are_not_run_at_the_same_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = simulated.config_of([Backend(name="b")], engine="builtin")
    made = simulated.sweep(tmp_path / "s", {"b": (config, {"b": {1: {"001": [10.0]}}})})
    own = made / sweep.CELLS / "b"
    with sweep.locked(made):
        assert cli.main(["--batch", "--resume", str(own)]) == 2
    assert "a cell of a sweep that is running, which comes to it" in capsys.readouterr().err
    tasks.add(made, tasks.Submission(name="t", tasks=[["b"]]))
    with (
        tasks.claimed(made, "b"),
        pytest.raises(FileError, match="another task has these cells"),
        sweep.kept_out(own),
    ):
        pass
    with (
        sweep.kept_out(own),
        pytest.raises(FileError, match="in use by another gatescope"),
        sweep.locked(made),
    ):
        pass
    with sweep.kept_out(tmp_path):  # no cell
        pass
