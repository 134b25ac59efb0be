"""Disks that fill up, directories that are locked or vanish, clocks that jump: each has one
outcome, and says so."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
from support.about import about
from support.place import GATESCOPE, LIMIT_S, Place, is_closed

from core.errors import FileError
from core.experiment import events, state
from core.experiment.events import AnyEvent
from core.experiment.plan import Run
from core.load.metrics import RequestRecord
from core.rundir import about as run_json
from core.rundir import journal, lock
from core.rundir.directory import RunDirectory
from core.rundir.result import done_runs

pytestmark = pytest.mark.fault

linux_only = pytest.mark.skipif(
    not hasattr(psutil, "RLIMIT_FSIZE"), reason="limits of another process need Linux"
)
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
PR_CAPBSET_DROP = 24
STAMPS = tuple(range(1, 4000))


def fill_up(process: psutil.Process, more: int, file: Path) -> None:
    """From now on no file of `process` grows past `file`'s size and `more` bytes: for it alone, the
    disk is full."""
    most = file.stat().st_size + more
    process.rlimit(psutil.RLIMIT_FSIZE, (most, most))


def goes_on(place: Place) -> None:
    """A resume runs what is missing, and touches nothing that was done."""
    before = place.results()
    done = place.gatescope("--batch", "--resume", "made")
    assert done.returncode == 0, done.stderr
    assert set(place.phases().values()) == {"done"}
    assert {name: place.results()[name] for name in before} == before


@linux_only
def test_a_journal_without_room_stops_the_batch_and_a_resume_goes_on(tmp_path: Path) -> None:
    place = Place(tmp_path, output_len=100, max_concurrency=1)
    with place.running("--backend", "baseline") as batch:
        batch.until(events.RequestFinished)
        fill_up(batch.me, 40, place.made / "events.jsonl")
        assert batch.drain() == 1
        assert not psutil.wait_procs(batch.tree, timeout=15)[1]
    said = (tmp_path / "stderr.txt").read_text()
    assert (
        "! stopped: [Errno 28] no room for the journal: 'made'; servers are down;"
        " fix this, then resume with" in said
    )
    assert "Traceback" not in said
    assert is_closed(place.ports[0])
    assert place.journal  # whole lines only
    goes_on(place)


@linux_only
def test_results_without_room_fail_their_run_and_the_queue_goes_on(tmp_path: Path) -> None:
    place = Place(tmp_path, output_len=300, max_concurrency=1)
    place.write_dataset(2, ["short"])
    with place.running("--backend", "baseline") as batch:
        batch.until(events.RunStarted)
        fill_up(batch.me, 20_000, place.made / "events.jsonl")
        assert batch.drain() == 1
    (failed,) = place.told(events.RunFailed)
    assert failed.run == "baseline/001"
    assert "its files cannot be written: [Errno 27] File too large" in failed.reason
    assert place.phases() == {"baseline/001": "failed", "baseline/002": "done"}
    assert not [p.name for p in place.made.rglob("*tmp*")]  # what was begun takes no room
    goes_on(place)


def test_a_result_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunDirectory.create(tmp_path) as directory:
        directory.write_json("a.json", {"old": 1})
        for fault in ("fsync", "replace"):
            with monkeypatch.context() as patch:
                patch.setattr(os, fault, _refuse)
                with pytest.raises(OSError, match="no space left"):
                    directory.write_json("a.json", {"new": 2})
        record = RequestRecord(0, "p", 1, 1, 1, 9, stamps_ns=STAMPS, event_tokens=STAMPS)
        monkeypatch.setattr(os, "replace", _refuse)
        with pytest.raises(OSError, match="no space left"):
            directory.write_requests(Run("b", "001", "001", "f"), [record])
    assert json.loads((tmp_path / "a.json").read_bytes()) == {"old": 1}
    assert not [p.name for p in tmp_path.rglob("*tmp*")]


def _refuse(*_: object) -> None:
    raise OSError(28, "no space left on device")


def _as_others_do() -> None:
    """Root writes anywhere: take that from the process, so that it meets what others meet."""
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "locked"
    folder.mkdir()
    yield folder
    folder.chmod(0o700)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="capabilities are Linux's")
def test_a_read_only_directory_is_named_before_anything_starts(
    tmp_path: Path, locked: Path
) -> None:
    place = Place(tmp_path)
    locked.chmod(0o500)

    def batch(*flags: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*GATESCOPE, "--batch", *flags],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            preexec_fn=_as_others_do,
        )

    refused = batch("--out", locked / "run")
    assert refused.returncode == 2, refused.stderr
    assert refused.stderr == f"gatescope: {locked / 'run'}: cannot be written: Permission denied\n"
    with place.running("--backend", "baseline", "--only", "001") as done:
        assert done.drain() == 0
    place.made.chmod(0o500)
    for file in (".lock", "events.jsonl"):
        (place.made / file).chmod(0o400)
    refused = batch("--resume", place.made)
    place.made.chmod(0o700)
    assert refused.returncode == 2
    assert refused.stderr == f"gatescope: {place.made}: cannot be written: Permission denied\n"


def test_a_deleted_run_directory_ends_the_batch_and_its_servers(tmp_path: Path) -> None:
    place = Place(tmp_path, output_len=200, max_concurrency=1)
    with place.running("--backend", "baseline") as batch:
        batch.until(events.RequestFinished)
        shutil.rmtree(place.made)
        assert batch.drain() == 1
        assert not psutil.wait_procs(batch.tree, timeout=15)[1]
    said = (tmp_path / "stderr.txt").read_text()
    assert "! stopped: [Errno 2] the run directory has been deleted: 'made'" in said
    assert "Traceback" not in said
    assert is_closed(place.ports[0])


RUNS = [Run("baseline", f"{i:03d}", f"{i:03d}", "f") for i in range(1, 4)]
FIGURES = events.RunFigures(
    completed=1, failed=0, duration_s=5.0, output_throughput=1.0, latencies={}, score=None, cv=None,
    aggregated_cv=None, excess_cv=None,
)  # fmt: skip


@pytest.mark.parametrize("step_s", [-86400.0, 86400.0], ids=["backwards", "forwards"])
def test_a_clock_that_is_set_in_a_run_spoils_no_order_and_no_time_left(
    tmp_path: Path, step_s: float
) -> None:
    """`at` is for labels: durations come from a clock that is never set, and the order is the
    journal's."""
    told: list[AnyEvent] = [events.ExperimentStarted(at=1e9, name="n", engine="e", runs=RUNS)]
    for place, run in enumerate(RUNS[:2]):
        at = 1e9 + 10 * place + step_s * place  # set while the second run runs
        told.append(events.RunStarted(at=1e9 + 10 * place, run=run.id, requests=1))
        told.append(events.RunFinished(at=at + 5, run=run.id, figures=FIGURES, result="r.json"))
    with RunDirectory.create(tmp_path) as directory:
        for event in told:
            directory.append(event)
    assert journal.read_events(tmp_path) == told
    snapshot = state.fold(told)
    assert [r.phase for r in snapshot.runs.values()] == ["done", "done", "queued"]
    eta = snapshot.eta_s()
    assert eta is not None
    assert eta == (5.0 + (65.0 if step_s > 0 else 5.0)) / 2


def test_a_journal_cannot_name_a_result_outside_its_run_directory(tmp_path: Path) -> None:
    (tmp_path / "outside.json").write_text("{}")
    with RunDirectory.create(tmp_path / "run") as directory:
        for result in ("../outside.json", str(tmp_path / "outside.json"), "a/../../outside.json"):
            directory.append(events.RunFinished(run=RUNS[0].id, figures=FIGURES, result=result))
    assert done_runs(tmp_path / "run") == set()
    whole = msgspec.to_builtins(about(), enc_hook=str) | {"backends": ["../.."]}
    (tmp_path / "run" / "run.json").write_bytes(msgspec.json.encode(whole))
    with pytest.raises(
        FileError, match=r"run\.json: not as gatescope writes it: Expected `str` matching regex"
    ):
        run_json.read(tmp_path / "run")


ODD = """
import errno, fcntl, os, socket, sys
def refuse(*_):
    raise OSError({number}, os.strerror({number}))
bind = socket.socket.bind
def bind_but_unix(self, address):
    if self.family == socket.AF_UNIX and str(address).endswith("control.sock"):
        refuse()
    return bind(self, address)
if {what!r} == "locks":
    fcntl.flock = refuse
else:
    socket.socket.bind = bind_but_unix
from core import cli
sys.exit(cli.main({arguments!r}))
"""


def on_an_odd_file_system(
    place: Place, what: str, number: int, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """A batch whose file system answers `flock`, or the control socket's `bind`, with an error."""
    code = ODD.format(what=what, number=number, arguments=["--batch", *arguments])
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=place.folder,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refused)
    file, said = lock.take(tmp_path)
    file.close()
    assert said.startswith(f"{tmp_path}: its file system has no locks ({os.strerror(number)}), so")


def test_the_batch_goes_on_without_locks(tmp_path: Path) -> None:
    place = Place(tmp_path)
    done = on_an_odd_file_system(
        place, "locks", errno.ENOSYS, "--out", "made", "--backend", "baseline", "--only", "001"
    )
    assert done.returncode == 0, done.stderr
    assert "! made: its file system has no locks (Function not implemented), so" in done.stderr
    again = on_an_odd_file_system(place, "locks", errno.ENOSYS, "--resume", "made")
    assert (again.returncode, "in use by" in again.stderr) == (0, False), again.stderr


def test_without_locks_the_pid_in_the_lock_file_keeps_a_second_one_out(tmp_path: Path) -> None:
    place = Place(tmp_path, pause_s=60.0)
    with place.running("--backend", "baseline") as batch:
        batch.until(events.RunFinished)
        second = on_an_odd_file_system(place, "locks", errno.ENOSYS, "--resume", "made")
    assert second.returncode == 2
    assert f"made: in use by another gatescope, process {batch.me.pid}; wait" in second.stderr


def test_a_file_system_without_unix_sockets_costs_commands_only(tmp_path: Path) -> None:
    """Whatever error number it says so by (bench/reliability/reports/machine.py tries three)."""
    place = Place(tmp_path)
    done = on_an_odd_file_system(
        place, "sockets", errno.EPERM, "--out", "made", "--backend", "baseline", "--only", "001"
    )
    assert done.returncode == 0, done.stderr
    assert (
        "! made: its file system has no unix sockets (Operation not permitted): the runs go on, but"
        " take no commands from the terminal UI; ctrl-C stops them" in done.stderr
    )
    assert place.phases() == {"baseline/001": "done"}
