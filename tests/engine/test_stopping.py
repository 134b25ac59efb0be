"""Signals, and what is done after them: nothing is left running, nothing done is lost, `--resume`
does the rest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from support.place import Place, Running, is_closed

from core.backends import supervise
from core.experiment import events


def supervisors(batch: Running) -> list[psutil.Process]:
    """The server's supervisor, and its watcher."""
    return [p for p in batch.tree if supervise.__file__ in p.cmdline()]


def gone(batch: Running, timeout_s: float) -> bool:
    """What the system's first process has yet to collect is gone too."""
    assert len(batch.tree) >= 2  # a supervisor and a server at least
    left = psutil.wait_procs(batch.tree, timeout=timeout_s)[1]
    return not [p for p in left if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_an_interrupted_batch_keeps_what_was_done_and_goes_on_with_the_rest(tmp_path: Path) -> None:
    place = Place(tmp_path, pause_s=60.0, input_len=16, request_rate=100)
    with place.running("--backend", "baseline") as batch:
        batch.until(events.RunFinished)
        second = place.gatescope("--batch", "--resume", "made")
        assert batch.end(signal.SIGINT) == 130
        assert gone(batch, 0)
    said = (tmp_path / "stderr.txt").read_text().splitlines()
    assert said[-1] == "run what is missing with: gatescope --resume made"
    assert second.returncode == 2
    assert (
        f"made: in use by another gatescope, process {batch.me.pid}; wait for it or stop it"
        in second.stderr
    )
    assert is_closed(place.ports[0])
    assert [e.by for e in place.told(events.ExperimentInterrupted)] == ["SIGINT"]
    assert place.phases() == {"baseline/001": "done", "baseline/002": "queued"}
    first = place.results()["baseline/results_json/001.json"]

    again = place.gatescope("--batch", "--out", "made", "--backend", "baseline")
    assert again.returncode == 2
    assert (
        "made: --out must be new or empty; to resume an interrupted run use: --resume made"
        in again.stderr
    )

    (tmp_path / "experiments.toml").unlink()  # the run directory knows what it was started with
    answer = place.gatescope("--resume", place.made, "--batch", cwd=tmp_path.parent)
    assert answer.returncode == 0, answer.stderr
    assert "resuming: 1 of 2 runs are missing" in answer.stderr
    assert set(place.phases().values()) == {"done"}
    assert [e.run for e in place.told(events.RunStarted)] == ["baseline/001", "baseline/002"]
    assert place.results()["baseline/results_json/001.json"] == first
    for result in map(json.loads, place.results().values()):
        assert (result["input_lens"], result["request_rate"], result["completed"]) == (
            [16] * 5,
            100,
            5,
        )
    mapping = json.loads((place.made / "baseline_real_imbalance.json").read_bytes())
    assert list(mapping) == ["gates_logs_01", "gates_logs_02"]


@pytest.mark.parametrize(
    ("number", "moment", "code"),
    [
        (signal.SIGTERM, events.BackendStarting, 143),
        (signal.SIGINT, events.RequestFinished, 130),
        (signal.SIGHUP, events.RunStarted, 129),
    ],
    ids=["SIGTERM while a server starts", "SIGINT while requests end", "SIGHUP while a run runs"],
)
def test_a_signal_leaves_no_process(
    tmp_path: Path, number: signal.Signals, moment: type[events.Event], code: int
) -> None:
    place = Place(tmp_path, output_len=500, max_concurrency=1)
    with place.running("--backend", "all2all") as batch:
        batch.until(moment)
        assert batch.end(number) == code
        assert not [p for p in batch.tree if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert is_closed(place.ports[1])
    assert set(place.phases().values()) == {"queued"}
    said = (tmp_path / "stderr.txt").read_text()
    assert f"stopped by {number.name}; what was done is kept" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("also", [0, 2], ids=["alone", "with supervisor and watcher"])
def test_when_gatescope_is_killed_its_servers_go(tmp_path: Path, also: int) -> None:
    """What a resume makes of it: see test_kill."""
    place = Place(tmp_path, output_len=500, max_concurrency=1)
    with place.running("--backend", "all2all") as batch:
        batch.until(events.RunStarted)
        last = supervisors(batch)[:also]
        for process in (batch.me, *last):
            process.suspend()  # so that they die as one
        for process in last:
            process.kill()
        assert batch.end(signal.SIGKILL) == -signal.SIGKILL
        assert gone(batch, 15)
    assert is_closed(place.ports[1])
    assert place.phases() == {"all2all/001": "running", "all2all/002": "queued"}


def test_a_killed_supervisor_costs_its_run_and_no_more(tmp_path: Path) -> None:
    place = Place(tmp_path, output_len=100, max_concurrency=1)
    with place.running("--backend", "all2all") as batch:
        batch.until(events.RunStarted)
        supervisors(batch)[0].kill()
        assert batch.drain() == 1
        assert gone(batch, 15)
    assert place.phases() == {"all2all/001": "failed", "all2all/002": "done"}
    (failed,) = place.told(events.RunFailed)
    assert "the supervisor of server all2all was killed by SIGKILL" in failed.reason
    assert len(place.told(events.BackendReady)) == 2


def test_what_was_done_is_on_disk_two_seconds_after_the_first_signal(tmp_path: Path) -> None:
    """Slurm sends SIGTERM, and SIGKILL a while later; here the server hangs, so that its end would
    take longer."""
    place = Place(tmp_path, output_len=100, max_concurrency=1)
    with place.running("--backend", "all2all") as batch:
        batch.until(events.RequestFinished)
        for process in batch.tree:
            if "core.builtin.server" in process.cmdline() and process not in supervisors(batch):
                process.suspend()
        batch.me.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            batch.process.wait(2.0)
        assert batch.end(signal.SIGKILL) == -signal.SIGKILL
        assert gone(batch, 15)
    assert [e.by for e in place.told(events.ExperimentInterrupted)] == ["SIGTERM"]
    assert set(place.phases().values()) == {"queued"}
    (partial,) = [
        json.loads(data)
        for name, data in place.results().items()
        if name.endswith("001.partial.json")
    ]
    assert partial["completed"] == sum(not e.error for e in place.told(events.RequestFinished)) >= 1


def test_a_resume_first_ends_what_nobody_was_left_to_end(tmp_path: Path) -> None:
    place = Place(tmp_path, output_len=2, pause_s=60.0)
    with place.running("--backend", "baseline") as batch:
        batch.until(events.RunFinished)
        batch.end(signal.SIGKILL)
        assert gone(batch, 15)
    lock = (place.made / ".lock").stat()
    stranger_code = (
        f"import socket, time; s = socket.create_server(('127.0.0.1', {place.ports[0]}));"
        " time.sleep(600)"
    )
    left = subprocess.Popen(
        [sys.executable, "-c", stranger_code],
        env={**os.environ, supervise.MARK: f"{lock.st_dev:x}-{lock.st_ino:x}.1234"},
        start_new_session=True,
    )
    try:
        answer = place.gatescope("--resume", "made", "--batch")
        assert answer.returncode == 0, answer.stderr
        assert f"! ending 1 process left by an earlier start: {left.pid}\n" in answer.stderr
        assert left.wait(0) == -signal.SIGTERM
    finally:
        left.kill()
    assert set(place.phases().values()) == {"done"}


def test_a_batch_outlives_the_signals_that_it_was_started_to_ignore(tmp_path: Path) -> None:
    """As nohup starts it, and `&` in a script. SIGTERM, which nobody ignored, ends it."""
    place = Place(tmp_path, pause_s=1.0)
    ignored = (signal.SIGINT, signal.SIGHUP)
    with place.running("--backend", "baseline", ignored=ignored) as batch:
        batch.until(events.RunFinished)
        for number in ignored:
            os.killpg(batch.me.pid, number)
        assert batch.drain() == 0
    assert place.phases() == {"baseline/001": "done", "baseline/002": "done"}
    assert place.told(events.ExperimentInterrupted) == []
