"""SIGKILL at seeded instants, then resume: nothing finished is lost or touched, nothing is left
behind.

GATESCOPE_KILLS sets how many kills a run of the suite does; the nightly number is 50.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
from support.watched import edit

from core.experiment import state
from core.rundir import journal
from core.rundir.result import done_runs, read

KILLS = int(os.environ.get("GATESCOPE_KILLS", "5"))
LATEST_S = 2.5
GONE_WITHIN_S = 15.0


def batch(experiment: Path, run_dir: Path) -> subprocess.Popen[bytes]:
    """Start, or resume where there is something to resume."""
    begun = (run_dir / "run.json").exists()
    if not begun:
        shutil.rmtree(run_dir, ignore_errors=True)
    how = (
        ["--resume", str(run_dir)]
        if begun
        else ["--config", str(experiment), "--out", str(run_dir)]
    )
    return subprocess.Popen(
        [sys.executable, "-m", "core.cli", "--batch", *how],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finished(run_dir: Path) -> dict[str, bytes]:
    """Every run that counts as done, with its result's bytes."""
    if not (run_dir / "events.jsonl").exists():
        return {}
    runs = state.fold(journal.read_events(run_dir)).runs
    return {i: (run_dir / runs[i].result).read_bytes() for i in done_runs(run_dir)}


def kill_at(process: subprocess.Popen[bytes], instant_s: float) -> bool:
    """SIGKILL after `instant_s`; false where it had ended by itself. Its whole tree is gone
    then."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(instant_s)
        return False
    tree = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    _, left = psutil.wait_procs(tree, timeout=GONE_WITHIN_S)
    assert not left, f"left behind: {left}"
    return True


def test_killed_at_any_instant_it_goes_on_where_it_was(experiment: Path, tmp_path: Path) -> None:
    edit(experiment, output_len=8, max_concurrency=0)
    instants = random.Random(7)
    kills = 0
    while kills < KILLS:
        run_dir = tmp_path / f"run{kills}"
        before: dict[str, bytes] = {}
        while True:
            process = batch(experiment, run_dir)
            was_killed = kill_at(process, instants.uniform(0, LATEST_S)) if kills < KILLS else False
            if kills >= KILLS:
                process.wait(120)
            after = finished(run_dir)
            assert {i: after.get(i) for i in before} == before
            before = after
            if not was_killed:
                break
            kills += 1
        assert process.returncode == 0, process.stderr and process.stderr.read()
        assert sorted(before) == [
            f"{b}/{d}" for b in ("all2all", "baseline") for d in ("001", "002", "003")
        ]
        for result in (run_dir / "baseline" / "results_json").glob("*.json"):
            log = read(result).gate_log
            assert log
            assert log.tokens_due
            assert log.tokens_seen == log.tokens_due


def test_the_lock_of_a_killed_engine_is_taken_over(experiment: Path, tmp_path: Path) -> None:
    edit(experiment, output_len=2)
    process = batch(experiment, tmp_path / "run")
    deadline = time.monotonic() + 30
    while not (tmp_path / "run" / "control.sock").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert kill_at(process, 0.0)
    assert (tmp_path / "run" / "control.sock").exists()
    assert batch(experiment, tmp_path / "run").wait(60) == 0
    assert not (tmp_path / "run" / "control.sock").exists()
