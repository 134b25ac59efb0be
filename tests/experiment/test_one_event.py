"""One command is one event, whatever the number of runs; one failing server is one error."""

from __future__ import annotations

from pathlib import Path

from support.place import Place
from support.watched import Watched

from core.experiment import control, events, narrate, state
from core.experiment.control import Cancel, Retry, StopServer
from core.experiment.events import AnyEvent
from core.experiment.plan import Run
from core.rundir import journal


def told(engine: Watched, kind: type[events.Event]) -> list[AnyEvent]:
    return [event for event in journal.read_events(engine.run_dir) if isinstance(event, kind)]


def test_cancelling_and_queueing_many_is_one_event_each(engine: Watched) -> None:
    engine.until(lambda s: s.live is not None)
    control.send(engine.run_dir, Cancel(["all2all/001", "all2all/003"]))
    engine.until(lambda s: s.count("cancelled") == 2)
    (cancelled,) = told(engine, events.RunCancelled)
    assert isinstance(cancelled, events.RunCancelled)
    assert (cancelled.run, cancelled.others) == ("all2all/001", ["all2all/003"])

    control.send(engine.run_dir, Retry(["all2all/003", "all2all/001"]))
    snapshot = engine.until(lambda s: s.count("cancelled") == 0)
    assert list(snapshot.runs)[-2:] == ["all2all/003", "all2all/001"]
    (queued,) = told(engine, events.RunRequeued)
    assert isinstance(queued, events.RunRequeued)
    assert (queued.run, queued.others) == ("all2all/003", ["all2all/001"])


def test_stopping_a_server_is_one_event_with_the_run_in_progress_first(engine: Watched) -> None:
    engine.until(lambda s: s.live is not None)
    control.send(engine.run_dir, StopServer("baseline"))
    engine.until(lambda s: s.live and s.live.run.startswith("all2all"))
    (cancelled,) = told(engine, events.RunCancelled)
    assert isinstance(cancelled, events.RunCancelled)
    assert (cancelled.run, cancelled.others) == ("baseline/001", ["baseline/002", "baseline/003"])
    assert [p for i, p in engine.phases().items() if i.startswith("b")] == ["cancelled"] * 3


def test_they_are_one_line_each() -> None:
    runs = [Run("b", f"{n:03d}", f"{n:03d}", "f") for n in range(1, 5)]
    ids = [run.id for run in runs]
    snapshot = state.fold([events.ExperimentStarted(name="n", engine="e", runs=runs)])
    cancelled = events.RunCancelled(run=ids[0], completed=2, others=ids[1:3])
    snapshot = state.reduce(snapshot, cancelled)
    assert narrate.sentence(cancelled, snapshot) == (
        "× run 3 of 4 b/001          cancelled with 2 more, 2 requests kept"
    )
    again = events.RunRequeued(run=ids[0], others=ids[1:3])
    assert (
        narrate.sentence(again, state.reduce(snapshot, again)) == "· b/001 with 2 more queued again"
    )


def test_a_failing_server_prints_its_error_once(tmp_path: Path) -> None:
    place = Place(tmp_path)
    config = place.config.replace('name = "baseline"', 'name = "baseline"\nextra_args = ["--nix"]')
    (tmp_path / "experiments.toml").write_text(config)
    done = place.gatescope("--batch", "--backend", "baseline", "--out", "made")
    assert done.returncode == 1
    reasons = [event.reason for event in place.told(events.RunFailed)]
    assert len(reasons) == 2
    assert "exited with code 2" in reasons[0]  # the journal has it for each run
    assert done.stderr.count("exited with code 2") == 1
    assert done.stderr.count("failed: server baseline failed, for the reason above\n") == 2
