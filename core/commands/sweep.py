"""`gatescope sweep`: what a sweep will run before anything is started, and how far one is."""

from __future__ import annotations

import argparse
import json
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core.commands import arguments as arg
from core.commands import experiment
from core.errors import UsageError

if TYPE_CHECKING:
    from core.analysis.pace import Pace
    from core.experiment.cell import Cell
    from core.rundir.sweep import SweepFile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(
        title="commands",
        metavar="COMMAND",
        dest="verb",
        parser_class=arg.Parser,
    )
    text = "cells, starts, runs and hours of the sweep that the config asks for"
    plan = verbs.add_parser("plan", help=text, description=f"{text.capitalize()}.")
    experiment.add_selection(plan)
    plan.add_argument(
        "--pilot",
        type=Path,
        metavar="RUN_DIR",
        help="estimate the hours from this run directory (default: the newest one below runs/"
        " with the same engine)",
    )
    text = "the matrix of a sweep's cells: what is done, and the headline metric"
    status = verbs.add_parser("status", help=text, description=f"{text.capitalize()}.")
    status.add_argument("sweep", type=Path, metavar="SWEEP", help="folder of the sweep")
    status.add_argument("--json", action="store_true", help="a JSON list of the cells on stdout")
    text = "end the tasks of a sweep on a cluster, waiting or running"
    cancel = verbs.add_parser("cancel", help=text, description=f"{text.capitalize()}.")
    cancel.add_argument("sweep", type=Path, metavar="SWEEP", help="folder of the sweep")
    text = "the last lines of each server of a sweep; on a cluster, of each task"
    logs = verbs.add_parser("logs", help=text, description=f"{text.capitalize()}.")
    logs.add_argument("sweep", type=Path, metavar="SWEEP", help="folder of the sweep")
    logs.add_argument("cells", nargs="*", metavar="CELL", help="of these cells alone")
    logs.add_argument(
        "--lines", type=arg.at_least(1), default=20, metavar="N", help="(default: 20)"
    )
    text = "run these cells of a sweep here: what a task of a cluster does"
    run = verbs.add_parser("run", help=text, description=f"{text.capitalize()}.")
    run.add_argument("sweep", type=Path, metavar="SWEEP", help="folder of the sweep")
    run.add_argument("cells", nargs="+", metavar="CELL", help="as sweep status names them")


def run(arguments: argparse.Namespace) -> int:
    if arguments.verb == "plan":
        return _plan(arguments)
    if arguments.verb == "status":
        return _status(arguments.sweep, as_json=arguments.json)
    if arguments.verb == "run":
        from core.commands import sweep_batch

        return sweep_batch.run_cells(arguments.sweep, arguments.cells)
    if arguments.verb == "cancel":
        return _cancel(arguments.sweep)
    if arguments.verb == "logs":
        return _logs(arguments.sweep, arguments.cells, arguments.lines)
    raise UsageError(
        "gatescope sweep takes plan, status, cancel or logs; see gatescope sweep --help"
    )


def _plan(arguments: argparse.Namespace) -> int:
    from core.analysis import pace
    from core.commands import sweep_batch

    for name in ("out", "resume"):
        setattr(arguments, name, None)
    arguments.retry_cancelled = False
    asked = sweep_batch.planned(experiment.invocation(arguments))
    found = pace.read(arguments.pilot) if arguments.pilot else pace.newest(Path("runs"), asked)
    print("\n".join(_lines(asked, found)))
    return 0


def _lines(asked: SweepFile, found: Pace | None) -> Iterator[str]:
    from core.analysis import pace
    from core.experiment import search

    planned = asked.cells or asked.bases
    runs = [_runs(cell, asked.only) for cell in planned]
    width = max(len(cell.slug) for cell in planned)
    yield f"{'cell':<{width}}  {'starts':>6}  {'runs':>6}"
    for cell, count in zip(planned, runs, strict=True):
        yield f"{cell.slug:<{width}}  {cell.starts:>6}  {count:>6}"
    starts = len({(cell.server, n) for cell in planned for n in range(cell.starts)})
    loads = search.most_loads(asked.search) if asked.search else 1
    count = sum(runs) * loads
    most = " at most" if asked.until or asked.search else ""
    yield f"{len(planned)} cells, {starts} server starts, {count} runs{most}"
    if asked.search:
        yield f"each cell is run at {loads} loads at most, one after the other at the same server"
    if starts < sum(cell.starts for cell in planned):
        yield "cells that need the same server share its starts"
    if asked.until:
        until = asked.until
        yield (
            f"a cell stops once the 95 % interval of {until.metric} is within"
            f" {until.half_width_pct:g} %, after {until.max_starts} starts at most"
        )
    if found is None:
        yield "hours: not known; no earlier run to go by: give one with --pilot RUN_DIR"
        return
    hours = pace.hours(found, starts, count)
    yield (
        f"about {hours:.2g} hours{most}: a start takes {found.start_s:.1f} s and a run"
        f" {found.run_s:.1f} s in {found.path}"
    )


def _runs(cell: Cell, only: Sequence[str]) -> int:
    from core.experiment import plan

    return len(plan.make(cell.config, only).runs)


def _status(path: Path, *, as_json: bool) -> int:
    from core.analysis import cells, limits
    from core.analysis.matrix import entries
    from core.report import limit, matrix
    from core.rundir import sweep
    from core.terminal import printable

    asked = sweep.read(path)
    states = cells.read_all(path, asked)
    found = entries(asked, states)
    if as_json:
        import msgspec

        json.dump(msgspec.to_builtins(found), sys.stdout, indent=1)
        print()
        return 0
    answers = [limits.limit(base, asked, states) for base in asked.bases]
    for line in (*limit.lines(answers), *matrix.lines(asked, found)):
        print(printable(line))
    for state in states.values():
        for reason in state.failures[:1]:
            print(printable(f"failed: {state.cell.slug}: {reason.splitlines()[0]}"))
    return 0


def _cancel(path: Path) -> int:
    from core.commands import sweep_cluster
    from core.rundir import sweep

    asked = sweep.read(path)
    if asked.executor == "local":
        raise UsageError(f"{path}: it runs on this machine, not on a cluster; end it with ctrl-C")
    sweep_cluster.cancel(path, asked)
    return 0


def _logs(path: Path, wanted: Sequence[str], lines: int) -> int:
    from core.backends import serverlog
    from core.rundir import sweep
    from core.terminal import printable

    asked = sweep.read(path)
    for slug in wanted:
        asked.cell(slug)
    for log, slugs in _written(path, asked).items():
        if wanted and not set(wanted) & set(slugs):
            continue
        print(printable(f"==> {log}: {', '.join(slugs)}"))
        if log.is_file():
            print(printable("\n".join(deque(serverlog.lines(log), lines))))
        else:
            print("nothing: it has not run")
    return 0


def _written(path: Path, asked: SweepFile) -> dict[Path, list[str]]:
    """Log → its cells: of each task of a cluster; on one machine of each cell's last server, which
    several cells may share."""
    from core.rundir import sweep, tasks

    if asked.executor != "local":
        return {
            submission.log(path, index): slugs
            for submission in tasks.read(path)
            for index, slugs in enumerate(submission.tasks)
        }
    found: dict[Path, list[str]] = {}
    for cell in asked.cells:
        found.setdefault(sweep.server_log(path, cell), []).append(cell.slug)
    return found
