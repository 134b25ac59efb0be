"""A sweep on a Slurm of two nodes on this machine, with the real daemons and built-in servers."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support import slurm as support
from support.place import Place
from support.slurm import Slurm
from support.swept import (
    LIMIT_S,
    a_sweep,
    check_done_once,
    eventually,
    head,
    is_told,
    long,
    results,
    told,
)

from core.experiment import events
from core.rundir import journal, sweep, tasks
from core.rundir.result import read_all

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    support.needed()
    with support.running(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture(scope="module")
def swept(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Eight cells in four tasks, two at once."""
    folder = tmp_path_factory.mktemp("sweep")
    place = a_sweep(
        folder,
        [2, 4, 8, 16],
        'parallel = 2\ncpus = 2\nsetup = ["export OF_SETUP=1"]',
        num_prompts=2,
    )
    os.environ["HF_TOKEN"] = "hf_not-to-be-written-down"
    try:
        done = place.gatescope("--batch", "--executor", "slurm", "--out", "made")
    finally:
        del os.environ["HF_TOKEN"]
    assert done.returncode == 0, done.stderr
    (place.folder / "stderr").write_text(done.stderr)
    return place


class TestWholeSweep:
    def test_each_cell_is_an_ordinary_run_directory_that_is_done(self, swept: Place) -> None:
        assert len(sweep.run_directories(swept.made)) == 8
        check_done_once(swept, 2)
        assert (swept.made / "matrix.csv").read_text().count("\n") == 9

    def test_both_backends_of_a_combination_ran_on_one_of_two_nodes(self, swept: Place) -> None:
        nodes: dict[str, set[str | None]] = {}
        for slug, folder in sweep.run_directories(swept.made).items():
            backend, _, combination = slug.partition(",")
            found = read_all(folder / backend / "results_json").results.values()
            nodes.setdefault(combination, set()).update(result.node for result in found)
        assert all(len(own) == 1 for own in nodes.values())
        assert set.union(*nodes.values()) == {"n1", "n2"}

    def test_the_batch_script_is_kept_and_says_what_was_asked(self, swept: Place) -> None:
        (script,) = tasks.folder(swept.made).glob("*_submission.sh")
        lines = script.read_text().splitlines()
        for wanted in (
            "#SBATCH --array=0-3%2",
            "#SBATCH --signal=B:USR1@120",
            "#SBATCH --requeue",
            "#SBATCH --open-mode=append",
            "#SBATCH --time=1:00:00",
            "export OF_SETUP=1",
        ):
            assert wanted in lines

    def test_no_credential_is_written_down(self, swept: Place) -> None:
        written = [f for f in swept.folder.rglob("*") if f.is_file()]
        assert len(written) > 50
        assert [f for f in written if b"hf_not-to-be" in f.read_bytes()] == []

    def test_what_is_done_is_not_submitted_again(self, swept: Place) -> None:
        again = swept.gatescope("--batch", "--resume", "made")
        assert again.returncode == 0, again.stderr
        assert "submitted" not in again.stderr
        assert len(tasks.read(swept.made)) == 1


def test_when_the_time_is_up_the_task_is_queued_again_and_goes_on(
    slurm: Slurm, tmp_path: Path
) -> None:
    place = long(tmp_path, [4])
    with head(place) as process:
        eventually(lambda: is_told(place, events.RunStarted), "a run", tmp_path)
        before = results(place)
        (name,) = [one.name for one in tasks.read(place.made)]
        slurm.ask("scancel", "--batch", "--signal=USR1", f"--name={name}")
        assert process.wait(LIMIT_S) == 0, (tmp_path / "head.txt").read_text()
    assert before.items() <= results(place).items()
    check_done_once(place, 2)
    interrupted = [
        event.by
        for folder in sweep.run_directories(place.made).values()
        for event in journal.read_events(folder)
        if isinstance(event, events.ExperimentInterrupted)
    ]
    assert interrupted == ["SIGUSR1"]
    eventually(lambda: not slurm.processes(), "no process left", tmp_path)


def test_a_node_that_dies_loses_its_unfinished_runs_only(slurm: Slurm, tmp_path: Path) -> None:
    place = long(tmp_path, [4, 8])
    with head(place) as process:
        eventually(lambda: is_told(place, events.RunFinished), "a finished run", tmp_path)
        before = results(place)
        slurm.node_dies("n1")
        try:
            assert process.wait(LIMIT_S) == 0, (tmp_path / "head.txt").read_text()
        finally:
            slurm.start("n1")
            slurm.wait_ready()
    assert before.items() <= results(place).items()
    check_done_once(place, 2)


def test_cancelling_reaches_the_tasks_and_the_head_need_not_live(
    slurm: Slurm, tmp_path: Path
) -> None:
    """The sweep is resumed while Slurm still lists the tasks that end: one is slow to."""
    place = long(tmp_path, [4, 8])
    with head(place) as process:
        eventually(lambda: is_told(place, events.RunStarted, 2), "both runs", tmp_path)
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = results(place)
    (slow, *_) = slurm.steps(slurm.processes())
    slow.suspend()
    try:
        done = place.gatescope("sweep", "cancel", "made")
        assert done.returncode == 0, done.stderr
        with head(place, "--resume", "made") as again:
            said = tmp_path / "head.txt"
            eventually(lambda: "waits for" in said.read_text() or again.poll() is not None, "word")
            slow.resume()
            assert again.wait(LIMIT_S) == 0, said.read_text()
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            slow.resume()
    assert told(place, events.ExperimentInterrupted) >= 1
    assert before.items() <= results(place).items()
    check_done_once(place, 2)
    eventually(lambda: not slurm.processes(), "no process left", tmp_path)


def test_the_doctor_asks_slurm_and_a_node(slurm: Slurm, tmp_path: Path) -> None:
    place = long(tmp_path, [4])
    found = place.gatescope("doctor", "--executor", "slurm")
    assert "takes a task: " in found.stdout
    assert "one that is held here is seen on " in found.stdout
    assert "a run directory there can be sent commands on its node" in found.stdout
    assert not list((tmp_path / "runs").iterdir())


def test_the_doctor_says_what_slurm_refuses(slurm: Slurm, tmp_path: Path) -> None:
    place = a_sweep(tmp_path, [4], 'partition = "none"')
    found = place.gatescope("doctor", "--executor", "slurm")
    assert found.returncode == 1
    assert "invalid partition specified: none" in found.stdout
    refused = place.gatescope("--batch", "--executor", "slurm", "--out", "made")
    assert refused.returncode == 2
    assert "sbatch refused" in refused.stderr
    assert "invalid partition specified: none" in refused.stderr


@pytest.mark.parametrize("seed", range(int(os.environ.get("GATESCOPE_KILLS", "1"))))
def test_whatever_is_killed_nothing_finished_is_lost_or_done_twice(
    slurm: Slurm, tmp_path: Path, seed: int
) -> None:
    """A task's gatescope, a node with all that runs there, or the process that follows, at an
    instant drawn from the seed."""
    victim = ("task", "node", "head")[seed % 3]
    place = long(tmp_path, [4, 8])
    with head(place) as process:
        eventually(lambda: sweep.is_sweep(place.made) and bool(slurm.processes()), "a task")
        time.sleep(random.Random(seed).uniform(0, 15))
        before = results(place)
        if victim == "head":
            process.kill()
        elif victim == "task":
            tasks_of = [p for p in slurm.processes() if "run" in p.cmdline()]
            for one in tasks_of[:1]:
                one.kill()
        else:
            slurm.node_dies("n1")
        process.wait(LIMIT_S)
        if victim == "node":
            slurm.start("n1")
            slurm.wait_ready()
    done = place.gatescope("--batch", "--resume", "made")
    assert done.returncode == 0, done.stderr
    assert before.items() <= results(place).items()
    check_done_once(place, 2)
    eventually(lambda: not slurm.processes(), "no process left", tmp_path)
