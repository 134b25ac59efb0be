"""The loop on real servers: what happens when one dies, hangs, or does not start."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import psutil
from support.watched import Watched, edit

from core.engine import detached
from core.experiment import control, events, narrate
from core.experiment.control import Add
from core.experiment.invocation import Invocation
from core.experiment.state import Snapshot
from core.rundir import journal

SERVER = "core.builtin.server"


def kill(watched: Watched, number: signal.Signals) -> None:
    (server,) = watched.servers(SERVER)
    server.send_signal(number)


def test_a_server_that_dies_fails_its_run_with_the_cause_and_the_queue_goes_on(
    engine: Watched,
) -> None:
    engine.until(lambda s: s.live and s.live.finished)
    kill(engine, signal.SIGKILL)
    after = engine.until(lambda s: s.live and s.live.run == "baseline/002")
    assert after.runs["baseline/001"].phase == "failed"
    reason = after.runs["baseline/001"].reason
    assert re.search(
        r"[1-4] of 4 requests failed, the first with: .*; server baseline was killed by SIGKILL",
        reason,
    )
    starts = [
        e for e in journal.read_events(engine.run_dir) if isinstance(e, events.BackendStarting)
    ]
    assert [e.backend for e in starts] == ["baseline", "baseline"]


def test_a_server_that_hangs_is_started_again(experiment: Path, tmp_path: Path) -> None:
    edit(experiment, stall_timeout_s=1.0, output_len=60)
    engine = Watched(
        detached.start(
            Invocation(experiment, tmp_path / "run", only=("001", "002"), backends=("baseline",))
        )
    )
    engine.until(lambda s: s.live and s.live.finished)
    kill(engine, signal.SIGSTOP)
    ended: Snapshot = engine.until(lambda s: s.finished)
    assert ended.runs["baseline/001"].phase == "failed"
    assert "stalled: no token for 1 s" in ended.runs["baseline/001"].reason
    assert ended.runs["baseline/002"].phase == "done"
    engine.wait()


def test_interleaved_backends_take_turns_as_often_as_it_takes(
    experiment: Path, tmp_path: Path
) -> None:
    """A server that was put down for the other's turn is no failed one, however often."""
    edit(experiment, repeats=6, interleave="true", output_len=2)
    engine = Watched(detached.start(Invocation(experiment, tmp_path / "run", only=("001",))))
    ended: Snapshot = engine.until(lambda s: s.finished)
    assert {r.phase for r in ended.runs.values()} == {"done"}
    starts = [
        e.backend
        for e in journal.read_events(engine.run_dir)
        if isinstance(e, events.BackendStarting)
    ]
    assert starts == [*["baseline", "all2all"] * 3, "baseline"]
    engine.wait()


def test_every_start_is_a_server_of_its_own_and_every_result_names_its_start(
    experiment: Path, tmp_path: Path
) -> None:
    """A B B A: also neighbours of one backend are two lives; a run that is added goes to the
    last."""
    edit(experiment, starts=2, split="true", output_len=2)
    engine = Watched(detached.start(Invocation(experiment, tmp_path / "run", only=("001", "002"))))
    control.send(engine.run_dir, Add(["001"], ["baseline"]))
    ended: Snapshot = engine.until(lambda s: s.finished)
    assert {r.phase for r in ended.runs.values()} == {"done"}
    told = journal.read_events(engine.run_dir)
    begun = [e for e in told if isinstance(e, events.BackendStarting)]
    assert [(e.backend, e.start) for e in begun] == [
        ("baseline", 1),
        ("all2all", 1),
        ("all2all", 2),
        ("baseline", 2),
    ]
    assert len({e.pid for e in begun}) == 4
    found = {
        run.run.id: json.loads((engine.run_dir / run.result).read_text())
        for run in ended.runs.values()
    }
    assert {run: (r["start"], r["gate_log"]["folder"]) for run, r in found.items()} == {
        "baseline/001": (1, "baseline/gate_logs"),
        "all2all/001": (1, "all2all/gate_logs"),
        "all2all/002": (2, "all2all/gate_logs-start2"),
        "baseline/002": (2, "baseline/gate_logs-start2"),
        "baseline/001-r2": (2, "baseline/gate_logs-start2"),
    }
    lines = [narrate.sentence(event, ended) or "" for event in told]
    assert any(line.startswith("~ all2all: start 2 of 2, starting on port") for line in lines)
    assert any("all2all/002" in line and " start 2 of 2 " in line for line in lines)
    engine.wait()


def test_a_server_that_never_starts_fails_its_backends_runs_only(
    experiment: Path, tmp_path: Path
) -> None:
    text = experiment.read_text()
    experiment.write_text(
        text.replace('name = "baseline"', 'name = "baseline"\nextra_args = ["--no-such-option"]')
    )
    edit(experiment, output_len=2)
    engine = Watched(detached.start(Invocation(experiment, tmp_path / "run", only=("001", "002"))))
    ended = engine.until(lambda s: s.finished)
    assert [r.phase for r in ended.runs.values()] == ["failed", "failed", "done", "done"]
    assert "the server does not know --no-such-option" in ended.backends["baseline"].reason
    assert ended.backends["baseline"].phase == "failed"
    assert any("--no-such-option" in line for line in ended.backends["baseline"].log_tail)
    engine.wait()
    assert not psutil.pid_exists(ended.backends["all2all"].pid)


def test_a_dataset_that_went_bad_is_its_run_s_failure_only(
    experiment: Path, tmp_path: Path
) -> None:
    edit(experiment, arrival='"trace"')
    rows = [{"prompt": "a", "timestamp": at} for at in (0, 0.5, 1.0, 3.0)]
    for index in ("001", "003"):
        (experiment.parent / f"{index}_0.5.jsonl").write_text("\n".join(map(json.dumps, rows)))
    engine = Watched(
        detached.start(
            Invocation(experiment, tmp_path / "run", only=("001",), backends=("baseline",))
        )
    )
    engine.until(lambda s: s.live)
    (experiment.parent / "002_0.5.jsonl").write_text('{"prompt": 5}')
    rows[3]["timestamp"] = 1e300
    (experiment.parent / "003_0.5.jsonl").write_text("\n".join(map(json.dumps, rows)))
    control.send(engine.run_dir, Add(["002", "003", "001"], ["baseline"]))
    ended: Snapshot = engine.until(lambda s: s.finished)
    assert {name: run.phase for name, run in ended.runs.items()} == {
        "baseline/001": "done",
        "baseline/002": "failed",
        "baseline/003": "failed",
        "baseline/001-r2": "done",
    }
    assert "002_0.5.jsonl:1: prompt: expected a text, found 5" in ended.runs["baseline/002"].reason
    assert "would be due after" in ended.runs["baseline/003"].reason
    engine.wait()
