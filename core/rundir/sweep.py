"""The folder of a sweep: sweep.json says what its cells are, and `cells/<slug>/` are ordinary run
directories, whose journals say what was done."""

from __future__ import annotations

import contextlib
import datetime
import shlex
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from core import files
from core.errors import FileError
from core.experiment import state
from core.experiment.cell import Cell
from core.experiment.cluster import Cluster, Executor
from core.experiment.search import Search
from core.experiment.state import Snapshot
from core.experiment.sweep import Until
from core.experiment.tables import Metric
from core.rundir import about, journal, lock, tasks

NAME = "sweep.json"
CELLS = "cells"


class SweepFile(Struct, frozen=True, kw_only=True):
    """sweep.json. It rules on resume, whatever experiments.toml says by then."""

    name: str
    started: str  # UTC, ISO 8601
    seed: int
    metric: Metric
    only: tuple[str, ...] = ()  # datasets; empty: all
    cells: list[Cell]
    until: Until | None = None
    search: Search | None = None
    bases: list[Cell] = []  # what is searched; `cells` are its points so far
    executor: Executor = "local"
    cluster: Cluster = Cluster()

    def cell(self, slug: str) -> Cell:
        for cell in self.cells:
            if cell.slug == slug:
                return cell
        raise FileError(f"{slug}: no cell of this sweep; see: gatescope sweep status")


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def is_sweep(path: Path) -> bool:
    return (path / NAME).is_file()


def is_live(path: Path) -> bool:
    """Whether a gatescope of this machine runs it."""
    return is_sweep(path) and lock.is_held(path)


def read(path: Path) -> SweepFile:
    """FileError if `path` is no sweep's folder."""
    if not is_sweep(path):
        raise FileError(f"{path}: not the folder of a sweep: {NAME} is expected in it")
    found = files.read(path / NAME, SweepFile)
    for cell in (*found.cells, *found.bases):
        if len(cell.config.backends) != 1 or Path(cell.slug).name != cell.slug:
            raise FileError(f"{path / NAME}: cell {cell.slug!r}: not as gatescope writes it")
    return found


def write(path: Path, sweep: SweepFile) -> None:
    files.write_whole(path / NAME, files.formatted(sweep))


def folder(path: Path, cell: Cell) -> Path:
    """The run directory of a cell."""
    return path / CELLS / cell.slug


def server_log(path: Path, cell: Cell) -> Path:
    """What the cell's last server printed. A server that stayed up for this cell writes into the
    folder of the cell that it was started for."""
    name = cell.config.backends[0].name
    server = snapshot(folder(path, cell)).backends.get(name)
    if server is None or not server.log:
        return folder(path, cell) / name / "server.log"
    return path.joinpath(CELLS, *Path(server.log).parts[-3:])  # the sweep may have been moved


def run_directories(path: Path) -> dict[str, Path]:
    """Slug → run directory of every cell that was begun; of a run directory, itself without a
    slug."""
    if not is_sweep(path):
        return {"": path}
    found = {cell.slug: folder(path, cell) for cell in read(path).cells}
    return {slug: own for slug, own in found.items() if (own / about.NAME).is_file()}


def snapshot(run_dir: Path) -> Snapshot:
    """What the journal of a cell says; empty where nothing was begun."""
    if not (run_dir / "events.jsonl").is_file():
        return Snapshot()
    return state.fold(journal.stream_events(run_dir))


@contextlib.contextmanager
def locked(path: Path) -> Iterator[str]:
    """The sweep's folder, made where it is missing, kept from a second gatescope; what the marks of
    its servers begin with."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        file, _ = lock.take(path)
    except OSError as error:
        raise FileError(f"{path}: cannot be written: {error.strerror}") from None
    with file:
        yield lock.mark(file)


@contextlib.contextmanager
def kept_out(run_dir: Path) -> Iterator[None]:
    """While the body runs, the sweep that `run_dir` is a cell of, if it is one, cannot run it too.
    FileError where it runs already: it comes to its cells by itself."""
    path = run_dir.absolute().parent.parent
    if run_dir.absolute().parent != path / CELLS or not is_sweep(path):
        yield
        return
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(path))
            for group in (own for one in tasks.read(path) for own in one.tasks):
                if run_dir.name in group:
                    held.enter_context(tasks.claimed(path, group[0], wait_s=0.0))
                    break
        except FileError as error:
            raise FileError(
                f"{run_dir}: a cell of a sweep that is running, which comes to it: {error}"
            ) from None
        yield


def check_new(path: Path) -> None:
    """FileError where the folder holds something."""
    if path.is_dir() and any(path.iterdir()):
        raise FileError(
            f"{path}: --out must be new or empty; to resume an interrupted sweep use:"
            f" --batch --resume {shlex.quote(str(path))}"
        )
