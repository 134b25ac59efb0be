"""`gatescope plan`: what it reads from a pilot's run directory, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.about import about

from core import cli
from core.experiment import events
from core.experiment.events import AnyEvent, RunFigures
from core.files import formatted
from core.rundir.result import Result

TPOT = {  # by backend and start: two datasets, as far apart as the other start's
    ("baseline", 1): (10.0, 20.0),
    ("baseline", 2): (10.2, 20.4),
    ("all2all", 1): (11.0, 22.0),
    ("all2all", 2): (11.22, 22.44),
}


def pilot(folder: Path, backends: tuple[str, ...] = ("baseline", "all2all")) -> Path:
    """Two starts of each, which take 12 s, and runs of 6 s."""
    folder.mkdir()
    told: list[AnyEvent] = [events.ExperimentStarted(name="n", engine="e", runs=[])]
    for (backend, start), times in TPOT.items():
        if backend not in backends:
            continue
        told.append(
            events.BackendStarting(
                at=100.0, backend=backend, port=1, pid=1, command=[], log="", start=start
            )
        )
        told.append(events.BackendReady(at=112.0, backend=backend, seconds=10.0, ran={}))
        for index, tpot in enumerate(times, 1):
            label = f"{index:03d}" if start == 1 else f"{index:03d}-s{start}"
            file = folder / backend / "results_json" / f"{label}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(formatted(Result(backend=backend, start=start, mean_tpot_ms=tpot)))
            figures = RunFigures(
                completed=1,
                failed=0,
                duration_s=6.0,
                output_throughput=None,
                latencies={},
                score=None,
                cv=None,
                aggregated_cv=None,
                excess_cv=None,
            )
            told.append(events.RunFinished(run=f"{backend}/{label}", figures=figures, result=""))
    (folder / "run.json").write_bytes(formatted(about(backends=list(backends))))
    (folder / "events.jsonl").write_bytes(b"".join(events.encode(e) + b"\n" for e in told))
    return folder


def test_starts_datasets_and_hours_by_hand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Starts are ln 1.02 apart and nothing else varies: an SD of 1.4 %, of which 2 % takes 9 starts
    (8 at 1.3 %), each of 24 s and 2 × 12 s: 0.12 hours."""
    assert cli.main(["plan", str(pilot(tmp_path / "run")), "--effect", "2%"]) == 0
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert lines[0].startswith("TPOT, all2all against baseline: to find a difference of 2 %")
    assert lines[1] == "  a restart moves it by 1.4 % (SD, of the pilot's 4 starts)"
    assert lines[2].endswith("(SD, of 8 runs)")
    assert lines[3] == "  a start of both takes 24.0 s, a run of both 12.0 s"
    assert lines[5].split() == ["9", "2", "1", "0.12", "cheapest"]
    assert "set starts and repeats" in told.err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "--effect"),
        (["--effect", "0%"], "expected one percentage above 0, got '0%'"),
        (["--effect", "1,2"], "expected one percentage above 0"),
        (["--effect", "much"], "expected a percentage such as 2%"),
        (["--effect", "2%", "--metric", "mean_ttft_ms"], "too few runs to tell noise"),
    ],
)
def test_what_it_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], problem: str
) -> None:
    try:
        code: object = cli.main(["plan", str(pilot(tmp_path / "run")), *arguments])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert problem in capsys.readouterr().err


def test_one_backend_is_no_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = pilot(tmp_path / "run", ("baseline",))
    assert cli.main(["plan", str(run_dir), "--effect", "2"]) == 2
    assert "results of two backends are needed" in capsys.readouterr().err
