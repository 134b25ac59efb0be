"""A sweep on a cluster, as the tests of Slurm and of Ray start and watch it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.place import Place

from core.errors import FileError
from core.experiment import events
from core.rundir import journal, sweep
from core.rundir.result import done_runs

SWEPT = '[sweep]\ngrid = {{ "backends.*.max_num_seqs" = {values} }}\n'
LIMIT_S = 120.0


def a_sweep(folder: Path, values: list[int], cluster: str = "", **experiment: object) -> Place:
    folder.mkdir(exist_ok=True)
    place = Place(folder, starts=1, **experiment)
    swept = SWEPT.format(values=values)
    (folder / "experiments.toml").write_text(f"{place.config}\n{swept}[cluster]\n{cluster}\n")
    return place


@contextlib.contextmanager
def head(place: Place, *how: str) -> Iterator[subprocess.Popen[bytes]]:
    """The process that submits and follows."""
    words = how or ("--executor", "slurm", "--out", "made")
    with open(place.folder / "head.txt", "ab") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "core.cli", "--batch", *words],
            cwd=place.folder,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def eventually(holds: Callable[[], bool], what: str, *places: Path) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not holds():
        if time.monotonic() > deadline:
            said = [f.read_text()[-3000:] for place in places for f in place.rglob("*.log")]
            pytest.fail(f"not within {LIMIT_S:.0f} s: {what}\n" + "\n".join(said))
        time.sleep(0.1)


def told(place: Place, kind: type[events.Event]) -> int:
    """Events of a kind in all journals."""
    found = 0
    for folder in sweep.run_directories(place.made).values():
        with contextlib.suppress(FileError):
            found += sum(isinstance(event, kind) for event in journal.read_events(folder))
    return found


def is_told(place: Place, kind: type[events.Event], times: int = 1) -> bool:
    return sweep.is_sweep(place.made) and told(place, kind) >= times


def results(place: Place) -> dict[str, bytes]:
    return {str(f): f.read_bytes() for f in place.made.rglob("results_json/*.json")}


def check_done_once(place: Place, runs: int) -> None:
    """Every run of every cell is done, and was finished once."""
    for slug, folder in sweep.run_directories(place.made).items():
        ended = Counter(
            event.run
            for event in journal.read_events(folder)
            if isinstance(event, events.RunFinished)
        )
        assert set(ended.values()) == {1}, slug
        assert len(done_runs(folder)) == len(ended) == runs, slug
    assert not list(place.made.rglob("*.tmp*"))


def long(folder: Path, values: list[int], cluster: str = "") -> Place:
    """One backend, and runs of some seconds, which can be interrupted."""
    place = a_sweep(folder, values, cluster, num_prompts=4, output_len=100, max_concurrency=1)
    file = folder / "experiments.toml"
    first, second = file.read_text().split('[[backends]]\nname = "all2all"')
    file.write_text(first + second[second.index("[sweep]") :])
    return place
