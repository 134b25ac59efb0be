"""A sweep whose cells are tasks of a cluster: submitted, then followed by their journals. The tasks
do not need this process."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from core.cluster import ray_tasks, slurm
from core.cluster.work import TaskState
from core.errors import GatescopeError
from core.experiment import cell as cells
from core.experiment import events, state
from core.experiment.cell import Cell
from core.experiment.state import Snapshot
from core.rundir import lock, sweep, tasks
from core.rundir.journal import Journal
from core.rundir.sweep import SweepFile
from core.terminal import printable, tell

POLL_S = 1.0
QUEUE_S = 10.0  # between two questions to the scheduler, which serves the whole site
ENDING_S = 120.0  # for a task that ends to leave the queue, or to be queued again


class CellEvent(msgspec.Struct, frozen=True, tag_field="event", tag=True):
    """With --json: an event of a cell's journal."""

    cell: str
    told: events.AnyEvent


@dataclass
class Followed:
    """The journal of one cell, as far as it has been read."""

    cell: Cell
    journal: Journal
    seen: Snapshot = field(default_factory=Snapshot)

    @property
    def is_done(self) -> bool:
        """Whether all runs are done, and their server has ended."""
        runs = self.seen.runs.values()
        return self.seen.finished and bool(runs) and all(run.phase == "done" for run in runs)

    def news(self) -> Iterator[events.AnyEvent]:
        if not self.journal.file.is_file():
            return
        while part := self.journal.poll():
            for event in part:
                self.seen = state.reduce(self.seen, event)
                yield event


def run(path: Path, asked: SweepFile, missing: Collection[str], *, json: bool) -> None:
    """Submit the tasks of the `missing` cells that are in no queue, and follow until no task is
    left. GatescopeError where the cluster refuses."""
    file, unlocked = lock.take(_probe(path))
    file.close()
    tasks.check_locks(unlocked)
    groups = _groups(asked, missing)
    if not groups:
        return
    if asked.executor == "ray":
        with ray_tasks.running(path, asked, groups) as queue:
            tell(f"▣ {len(groups)} tasks of Ray; they end with this process")
            _follow(path, asked, queue, POLL_S, json=json)
        return
    queued = _queued(path, {slug for group in groups for slug in group})
    groups = [group for group in groups if not queued & set(group)]
    if groups:
        name = slurm.submit(path, asked, groups)
        tell(f"▣ submitted {len(groups)} tasks as {name}; they go on without this process")
    tell(f"  to watch: gatescope attach {shlex.quote(str(path))}")
    tell(f"  to end them: gatescope sweep cancel {shlex.quote(str(path))}")
    try:
        _follow(path, asked, lambda: slurm.queue(path), QUEUE_S, json=json)
    except KeyboardInterrupt:
        tell("· no longer followed; the tasks go on")
        raise


def _queued(path: Path, wanted: set[str]) -> set[str]:
    """Cells whose task waits or runs. One that is ending is no promise: it is waited for until it
    is gone or waits again; should it outlive that, the claim keeps its cells from a second task."""
    deadline, said = time.monotonic() + ENDING_S, False
    while True:
        found = [one for one in slurm.queue(path) if wanted & set(one.cells)]
        ending = sum(one.is_ending for one in found)
        if not ending or time.monotonic() > deadline:
            return {slug for one in found if not one.is_ending for slug in one.cells}
        if not said:
            tell(f"· waits for {ending} tasks of before, which are ending")
            said = True
        time.sleep(POLL_S)


def _groups(asked: SweepFile, missing: Collection[str]) -> list[list[str]]:
    """The cells of each task that has something to do."""
    return [
        [cell.slug for cell in group]
        for group in cells.on_one_node(asked.cells, asked.cluster.pair)
        if any(cell.slug in missing for cell in group)
    ]


def cancel(path: Path, asked: SweepFile) -> None:
    """End the sweep's tasks. GatescopeError where the cluster does not answer."""
    if asked.executor == "ray":
        ray_tasks.cancel(path)
    else:
        slurm.cancel(path)
    tell("· asked the cluster to end every task; they write their journals first")


def _follow(
    path: Path,
    asked: SweepFile,
    queue: Callable[[], list[TaskState]],
    every_s: float,
    *,
    json: bool,
) -> None:
    """Until every run is done by the journals, or no task is left."""
    followed = [Followed(one, Journal(sweep.folder(path, one))) for one in asked.cells]
    known: dict[tuple[str, ...], TaskState] = {}
    asked_at, live = -every_s, True
    while live and not all(one.is_done for one in followed):
        time.sleep(POLL_S)
        if time.monotonic() - asked_at >= every_s:
            asked_at = time.monotonic()
            live = _look(queue, known)
        for one in followed:
            for event in one.news():
                _tell(one, event, json=json)


def _look(queue: Callable[[], list[TaskState]], known: dict[tuple[str, ...], TaskState]) -> bool:
    """Say how tasks changed; whether any is left."""
    try:
        now = {one.cells: one for one in queue()}
    except GatescopeError as error:
        tell(printable(f"! {error}; the tasks are followed by their journals"))
        return True
    for group, one in now.items():
        before = known.get(group)
        if before is None or (before.state, before.node) != (one.state, one.node):
            where = f" on {one.node}" if one.node else f" ({one.reason})" if one.reason else ""
            tell(printable(f"· {', '.join(group)}: {one.state}{where}"))
    known.clear()
    known |= now
    return bool(now)


def _tell(one: Followed, event: events.AnyEvent, *, json: bool) -> None:
    if json:
        line = msgspec.json.encode(CellEvent(one.cell.slug, event))
        sys.stdout.buffer.write(line + b"\n")
        sys.stdout.buffer.flush()
    slug = one.cell.slug
    match event:
        case events.RunFinished():
            done = sum(run.phase == "done" for run in one.seen.runs.values())
            tell(printable(f"✓ {slug}: {event.run}, {done} of {len(one.seen.runs)} runs"))
        case events.RunFailed():
            tell(printable(f"✗ {slug}: {event.run}: {event.reason.splitlines()[0]}"))
        case events.ExperimentInterrupted():
            tell(printable(f"· {slug}: interrupted by {event.by}"))


def _probe(path: Path) -> Path:
    tasks.folder(path).mkdir(mode=0o700, exist_ok=True)
    return tasks.folder(path)
