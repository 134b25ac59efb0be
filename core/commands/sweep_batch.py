"""A sweep without a UI: every start of every cell as a batch in the cell's own run directory, then
the matrix of cells."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import msgspec

from core.analysis import cells, limits
from core.analysis.cells import CellState
from core.analysis.matrix import entries
from core.commands import batch
from core.engine.servers import Kept
from core.errors import ConfigError, GatescopeError
from core.experiment import cell as cell_module
from core.experiment import config, plan
from core.experiment.cell import Cell
from core.experiment.cluster import Cluster
from core.experiment.config import Config
from core.experiment.forcing import with_doses
from core.experiment.invocation import Invocation
from core.experiment.sweep import Sweep, Until, combinations
from core.experiment.tables import Engine
from core.report import limit, matrix
from core.rundir import directory, sweep, tasks
from core.rundir.result import Result
from core.rundir.sweep import SweepFile, is_sweep
from core.terminal import printable, tell

# Starts of a cell, where starts = "auto": each runs all datasets. A limit has one value a
# start, and Student's factor is 12.7 with two and 4.3 with three.
AUTO_STARTS, AUTO_SEARCHES = 2, 3


class CellStarted(msgspec.Struct, frozen=True, tag_field="event", tag=True):
    """With --json: the cell and the start that the events after this line belong to."""

    cell: str
    start: int


def run(invocation: Invocation, *, json: bool) -> int:
    """The whole sweep; its exit code. GatescopeError before anything is started."""
    if invocation.resume:
        path, asked = invocation.resume, sweep.read(invocation.resume)
    else:
        asked = planned(invocation)
        for cell in asked.cells or asked.bases:
            _check(cell, asked)
        path = invocation.out or directory.new_path(asked.name)
        sweep.check_new(path)
    with sweep.locked(path) as mark:
        if not is_sweep(path):
            sweep.write(path, asked)
        if asked.executor == "local":
            code = _visits(path, asked, json=json, retry=invocation.retry_cancelled, mark=mark)
        else:
            code = _on_cluster(path, asked, json=json)
    _conclude(path)
    return code


def planned(invocation: Invocation) -> SweepFile:
    """The sweep that the config and the command line ask for. ConfigError as `config.load`."""
    whole = batch.chosen(invocation)
    plan.select_backends(whole, invocation.backends)
    table = _table(whole, invocation)
    made = cell_module.of_sweep(
        invocation.config_path, table, invocation.settings, invocation.backends
    )
    auto = AUTO_SEARCHES if whole.search else AUTO_STARTS
    settled = [_settled(cell, table, invocation, auto) for cell in made]
    return SweepFile(
        name=whole.experiment.name,
        started=sweep.now(),
        seed=whole.experiment.seed,
        metric=whole.experiment.metric,
        only=invocation.only,
        cells=[] if whole.search else settled,
        until=table.until,
        search=whole.search,
        bases=settled if whole.search else [],
        executor=invocation.executor,
        cluster=whole.cluster or Cluster(),
    )


def _table(whole: Config, invocation: Invocation) -> Sweep:
    """[sweep] with the axes of the command line. ConfigError where it does not go with [search]."""
    asked = whole.sweep or Sweep()
    grid = {**asked.grid, **invocation.axes}
    table = msgspec.structs.replace(asked, grid=grid)
    if whole.search and invocation.executor != "local":
        raise ConfigError(
            f"{whole.path}: [search] runs on one machine: its next load rests on all before it;"
            " leave out --executor"
        )
    if not (table.grid or table.zip or table.cells):
        if whole.search is None and invocation.executor == "local":
            return table
        return msgspec.structs.replace(table, cells=[{}])  # the backends as they are
    if whole.search is None:
        return table
    swept = {key for settings in combinations(table) for key in settings}
    if table.until or whole.search.key in swept:
        raise ConfigError(
            f"{whole.path}: [search] takes no until, and no {whole.search.key} in [sweep]; leave it"
            " out"
        )
    return table


def _settled(cell: Cell, table: Sweep, invocation: Invocation, auto: int) -> Cell:
    """The cell with the doses, the engine and the starts that it is run with."""
    levels, patterns = list(invocation.levels), list(invocation.patterns)
    own = with_doses(cell.config, levels, patterns, invocation.replay)
    experiment = own.experiment
    if invocation.engine:
        experiment = msgspec.structs.replace(experiment, engine=config.engine(invocation.engine))
    if invocation.executor != "local":
        own = _for_a_node(own, experiment.engine)
    kind = batch.kind_of(msgspec.structs.replace(own, experiment=experiment))
    starts, split = experiment.starts, experiment.split
    if starts == "auto":
        starts, split = auto, False
    if table.until:
        _check_until(own, table.until, split=split)
        starts = table.until.max_starts
    experiment = msgspec.structs.replace(experiment, engine=kind, starts=starts, split=split)
    return msgspec.structs.replace(cell, config=msgspec.structs.replace(own, experiment=experiment))


def _for_a_node(own: Config, engine: Engine) -> Config:
    """With free ports, since tasks may share a node. ConfigError where this machine's GPUs would
    say which engine runs on others."""
    if engine == "auto":
        raise ConfigError(
            f'{own.path}: [experiment], engine: expected "vllm" or "builtin" with --executor, since'
            " this machine need not be like the nodes; give --engine vllm or --engine builtin"
        )
    backends = tuple(msgspec.structs.replace(backend, port=0) for backend in own.backends)
    return msgspec.structs.replace(own, backends=backends)


def _check(cell: Cell, asked: SweepFile) -> None:
    """GatescopeError for a cell that cannot be run: here, or at all."""
    if asked.executor == "local":
        batch.of_cell(cell, asked.only)
    else:
        plan.make(cell.config, asked.only)


def run_cells(path: Path, slugs: Sequence[str]) -> int:
    """These cells of a sweep, on this machine: what a task of a cluster does; the exit code. One
    that is claimed by another task is left to it."""
    asked = sweep.read(path)
    own = msgspec.structs.replace(asked, cells=[asked.cell(slug) for slug in slugs])
    with tasks.claimed(path, slugs[0]):
        return _visits(path, own, json=False, retry=False)


def _on_cluster(path: Path, asked: SweepFile, *, json: bool) -> int:
    from core.commands import sweep_cluster

    states = cells.read_all(path, asked)
    missing = [slug for slug, state in states.items() if not _is_measured(asked, state)]
    sweep_cluster.run(path, asked, missing, json=json)
    return 0 if _is_done(asked, cells.read_all(path, asked)) else 1


def _check_until(own: Config, until: Until, *, split: bool) -> None:
    """ConfigError where a cell's starts do not run the same datasets, or results have no such
    metric."""
    if until.metric not in Result.__struct_fields__:
        raise ConfigError(
            f"{own.path}: [sweep], until, metric: expected a key of result files such as"
            f" mean_tpot_ms, got {until.metric!r}; see: gatescope schema result"
        )
    if split or own.experiment.interleave:
        raise ConfigError(
            f"{own.path}: [sweep], until: expected split = false and interleave = false, since it"
            " compares the starts of a cell"
        )


def _visits(path: Path, asked: SweepFile, *, json: bool, retry: bool, mark: str = "") -> int:
    """Run start after start until nothing is left that can be run; the exit code. With the `mark`
    of the lock that is held, a server stays up for the next cell where that needs no other."""
    if not mark:
        return _one_by_one(path, asked, None, json=json, retry=retry)
    batch.end_leftovers(mark)
    kept = Kept((path / f".{mark}gate_logs").absolute(), mark)
    try:
        return _one_by_one(path, asked, kept, json=json, retry=retry)
    finally:
        kept.put_down()


def _one_by_one(path: Path, asked: SweepFile, kept: Kept | None, *, json: bool, retry: bool) -> int:
    states, tried = cells.read_all(path, asked), set[tuple[str, int]]()
    up: tuple[bytes, int] | None = None
    while True:
        asked = _extended(path, asked, states)
        wanted = limits.wanted_starts(asked, states)
        found = cells.next_start(asked, states, wanted, tried, retry=retry)
        if found is None:
            return 0 if _is_done(asked, states) else 1
        cell, start = found
        _announce(asked, states, wanted, cell, start, json=json)
        lends = cell.config.experiment.warmup_requests > 0  # else its log may begin too late
        if kept and (up != (up := (cell.server, start)) or not lends):
            kept.put_down()
        own = kept if lends else None
        code = _visit(path, asked, cell, start, own, json=json, retry=retry)
        if code is None:
            return 1
        tried.add((cell.slug, start))
        states[cell.slug] = state = cells.read(path, cell)
        if code > 128 or state.seen.interrupted:
            _tell_resume(path)
            return code
        if all(run.phase in ("failed", "queued") for run in state.of_start(start)):
            tried |= {(cell.slug, later) for later in range(start, cell.starts + 1)}
            tell(printable(f"! cell {cell.slug}: nothing of start {start} was measured; left out"))


def _extended(path: Path, asked: SweepFile, states: dict[str, CellState]) -> SweepFile:
    """The sweep with the next point of each search, written down before it is measured."""
    new = [
        cell for base in asked.bases if (cell := limits.next_point(base, asked, states)) is not None
    ]
    if not new:
        return asked
    asked = msgspec.structs.replace(asked, cells=[*asked.cells, *new])
    sweep.write(path, asked)
    states |= {cell.slug: cells.read(path, cell) for cell in new}
    return asked


def _visit(
    path: Path,
    asked: SweepFile,
    cell: Cell,
    start: int,
    kept: Kept | None,
    *,
    json: bool,
    retry: bool,
) -> int | None:
    """One start of a cell; its exit code, None where nothing can be written any more."""
    own = sweep.folder(path, cell)
    try:
        return batch.visit(own, asked, cell, start, json=json, retry=retry, kept=kept)
    except GatescopeError as error:
        tell(printable(f"! cell {cell.slug}: {error}"))
        return 1
    except OSError as error:
        tell(printable(f"! stopped: {error}; servers are down"))
        _tell_resume(path)
        return None


def _is_done(asked: SweepFile, states: Mapping[str, CellState]) -> bool:
    if asked.search:
        return all(limits.limit(base, asked, states).is_done for base in asked.bases)
    return all(_is_measured(asked, state) for state in states.values())


def _is_measured(asked: SweepFile, state: CellState) -> bool:
    wanted = cells.wanted_starts(state, asked.until)
    runs = [run for n in range(1, wanted + 1) for run in state.of_start(n)]
    return bool(runs) and all(run.run.id in state.done for run in runs)


def _announce(
    asked: SweepFile,
    states: Mapping[str, CellState],
    wanted: Mapping[str, Collection[int]],
    cell: Cell,
    start: int,
    *,
    json: bool,
) -> None:
    over = sum(
        not states[slug].is_pending(number) for slug, starts in wanted.items() for number in starts
    )
    total = "" if asked.search else f" of {sum(map(len, wanted.values()))}"
    most = " at most" if asked.until or asked.search else ""
    tell(
        printable(f"\n▣ {over + 1}{total}: cell {cell.slug}, start {start} of {cell.starts}{most}")
    )
    if json:
        sys.stdout.write(msgspec.json.encode(CellStarted(cell.slug, start)).decode() + "\n")
        sys.stdout.flush()


def _tell_resume(path: Path) -> None:
    tell(f"to go on: gatescope --batch --resume {shlex.quote(str(path))}")


def _conclude(path: Path) -> None:
    """Print the matrix, or what was searched for, and write it beside the cells."""
    asked = sweep.read(path)
    states = cells.read_all(path, asked)
    found = entries(asked, states)
    answers = [limits.limit(base, asked, states) for base in asked.bases]
    for line in ("", *limit.lines(answers), *matrix.lines(asked, found)):
        tell(printable(line))
    for file in (*matrix.write(path, found), *limit.write(path, answers)):
        tell(f"wrote {file}")
