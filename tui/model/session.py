"""Session: what the screen shows, a plan that is not started or a run directory that is followed.
No widgets."""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import structs

from core.errors import FileError, GatescopeError
from core.experiment import control, state
from core.experiment.control import Command
from core.experiment.events import AnyEvent, RequestFinished, Sampled
from core.experiment.invocation import Invocation
from core.experiment.state import RunState, Snapshot
from tui.model.client import client
from tui.model.view import Happened, Stage, View

if TYPE_CHECKING:
    from core.rundir.journal import Journal
    from tui.model.loads import Load, Loads
    from tui.model.verdicts import Verdicts

EVENTS_KEPT = 500


class Session:
    """Holds the snapshot and takes commands. Every method but `poll` may block: call those from a
    thread."""

    def __init__(
        self,
        invocation: Invocation,
        run_dir: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.invocation = invocation  # what `start` runs if there is no run directory
        self.run_dir = run_dir
        self.clock = clock
        self.snapshot = Snapshot()
        self.happened: tuple[Happened, ...] = ()
        self.stage: Stage = "reading"
        self.problem = ""
        self.unfinished = ""  # an older run directory, while nothing is started
        self.alive = False  # whether the engine answered when it was last looked for
        self._journal: Journal | None = None
        self._loads: Loads | None = None
        self._load: Load | None = None
        self._verdicts: Verdicts | None = None

    def open(self) -> None:
        """Read the run directory, or plan what would be run."""
        try:
            if self.run_dir:
                self.follow(self.run_dir)
            else:
                self.snapshot, self.stage, self.problem = (
                    planned(self.invocation),
                    "not started",
                    "",
                )
                self.unfinished = newest_unfinished()
        except GatescopeError as error:
            self.problem, self.stage = str(error), "failed"

    def follow(self, run_dir: Path) -> None:
        """Fold the journal of `run_dir`, and follow it from now on. FileError if it has none."""
        from core.rundir.journal import Journal

        journal = Journal(run_dir)
        snapshot, happened = Snapshot(), tuple[Happened, ...]()
        while part := journal.poll():
            snapshot, new = folded(part, snapshot)
            happened = (*happened, *new)[-EVENTS_KEPT:]
        if not snapshot.started_at:
            raise FileError(f"{run_dir}: its journal is empty; is it a run directory?")
        self.run_dir, self._journal = run_dir, journal
        self.snapshot, self.happened, self.problem = snapshot, happened, ""
        self.alive = self.is_live()
        self.stage = self._stage()

    def look(self, run: str, *, recent: bool = False) -> None:
        """Check whether the engine is there, read the expert load of `run` so far: of all its
        steps, or of the `recent` ones; and judge what has ended."""
        from tui.model.loads import Loads
        from tui.model.verdicts import Verdicts

        if self.run_dir is None:
            return
        if self._loads is None or self._loads.run_dir != self.run_dir:
            self._loads, self._verdicts = Loads(self.run_dir), Verdicts(self.run_dir)
        self.alive = self.is_live()
        self._loads.read()
        self._load = self._loads.of(run, recent=recent)
        if self._verdicts:
            self._verdicts.read(self.snapshot)

    def view(self, pinned: str = "") -> View:
        """What the panes draw: the run `pinned`, else the one in progress, else the last ended."""
        snapshot = self.snapshot
        view = View(
            snapshot=snapshot,
            stage=self.stage,
            now=self.clock(),
            run_dir=str(self.run_dir or ""),
            problem=self.problem,
            pinned=pinned in snapshot.runs,
            happened=self.happened,
        )
        shown = pinned if view.pinned else view.running or _last_ended(snapshot)
        load = self._load if self._load and self._load.run == shown else None
        run = snapshot.runs.get(shown)
        judged = (
            client(self.run_dir, shown, run.result) if self.run_dir and run and run.result else None
        )
        view = structs.replace(view, shown=shown, load=load, client=judged)
        if self._verdicts is None:
            return view
        said = self._verdicts
        return structs.replace(view, invalid=said.words, prices=said.prices)

    def poll(self) -> None:
        """Fold what has happened since; quick."""
        if self._journal is None:
            return
        try:
            events = self._journal.poll()
        except GatescopeError as error:
            self.problem = str(error)
            return
        if events:
            self.snapshot, new = folded(events, self.snapshot)
            self.happened = (*self.happened, *new)[-EVENTS_KEPT:]
        self.stage = self._stage()

    def start(self, *, retry_cancelled: bool = False) -> Path:
        """Start the engine, or resume with the missing runs, and with `retry_cancelled` also the
        cancelled ones; return the run directory. GatescopeError says why not."""
        from core.engine import detached

        invocation = self.invocation
        if self.run_dir:
            invocation = Invocation(
                invocation.config_path,
                resume=self.run_dir,
                retry_cancelled=retry_cancelled or invocation.retry_cancelled,
            )
        run_dir = detached.start(invocation)
        self.follow(run_dir)
        return run_dir

    def send(self, command: Command) -> None:
        """Send a command to the engine. ControlError says why it was not done."""
        if self.run_dir is None:
            raise control.ControlError("nothing has been started yet; r starts it")
        control.send(self.run_dir, command)

    def note(self, text: str) -> None:
        """Add lines about what the screen met to what has happened."""
        lines = [Happened(self.clock(), row) for row in text.splitlines()]
        self.happened = (*self.happened, *lines)[-EVENTS_KEPT:]

    def is_live(self) -> bool:
        return self.run_dir is not None and control.is_live(self.run_dir)

    def datasets(self) -> dict[str, Path]:
        """Every dataset in the configuration, by index. GatescopeError if it cannot be read."""
        from core.experiment import config, plan
        from core.rundir import about

        loaded = (
            about.read(self.run_dir).config
            if self.run_dir
            else config.load(self.invocation.config_path, self.invocation.settings)
        )
        return plan.select_datasets(loaded, ())

    def _stage(self) -> Stage:
        if self.alive:
            return "running"
        if self.snapshot.finished:
            return "finished"
        return "stopped" if self.snapshot.interrupted else "engine gone"


def _last_ended(snapshot: Snapshot) -> str:
    """Id of the run that ended last, or ""."""
    ended = [r for r in snapshot.runs.values() if r.ended_at]
    return max(ended, key=lambda r: r.ended_at).run.id if ended else ""


def folded(
    events: Sequence[AnyEvent], snapshot: Snapshot | None = None
) -> tuple[Snapshot, tuple[Happened, ...]]:
    """The snapshot after `events`, and the last lines about them: only those are put into
    words."""
    from core.experiment import narrate

    telling = [n for n, event in enumerate(events) if not is_quiet(event)]
    first = telling[-EVENTS_KEPT] if len(telling) > EVENTS_KEPT else 0
    snapshot = state.fold(events[:first], snapshot)
    happened: list[Happened] = []
    for quiet, group in itertools.groupby(events[first:], is_quiet):
        if quiet:
            snapshot = state.fold(group, snapshot)
            continue
        for event in group:
            snapshot = state.reduce(snapshot, event)
            lines = (narrate.sentence(event, snapshot) or "").splitlines()
            happened += [Happened(event.at, text) for text in lines]
    return snapshot, tuple(happened[-EVENTS_KEPT:])


def is_quiet(event: AnyEvent) -> bool:
    """Whether it is one of the frequent events that get no line."""
    return isinstance(event, Sampled) or (isinstance(event, RequestFinished) and not event.error)


def planned(invocation: Invocation) -> Snapshot:
    """What would be run, with the scores in the datasets' file names. GatescopeError if nothing can
    be."""
    from core.experiment import config, plan
    from core.experiment.forcing import with_doses
    from core.routing import recording

    levels, patterns = list(invocation.levels), list(invocation.patterns)
    loaded = config.load(invocation.config_path, invocation.settings)
    loaded = with_doses(loaded, levels, patterns, invocation.replay)
    loaded, _ = recording.of_config(loaded)
    engine = config.engine(invocation.engine or loaded.experiment.engine)
    if loaded.experiment.starts == "auto":
        from core.backends import choice

        names = plan.select_backends(loaded, invocation.backends)
        kind = choice.decide(engine, [b for b in loaded.backends if b.name in names])
        loaded = config.with_starts(loaded, kind)
    made = plan.make(loaded, invocation.only, invocation.backends)
    runs = {r.id: RunState(r, score=score_in(r.file)) for r in made.runs}
    return Snapshot(name=loaded.experiment.name, engine=engine, runs=runs)


def score_in(file: str) -> float | None:
    """`datasets/001_0.7237.jsonl` → 0.7237."""
    found = re.search(r"_(\d\.\d+)\.jsonl$", file)
    return float(found.group(1)) if found else None


def newest_unfinished(parent: Path = Path("runs")) -> str:
    """The run directory under `parent` that was written last, if runs are missing in it; else
    ""."""
    from core.rundir import past

    journals = sorted(parent.glob("*/events.jsonl"), key=os.path.getmtime)
    if not journals:
        return ""
    try:
        newest = past.of_run_directory(journals[-1].parent)
    except FileError:
        return ""
    return newest.path if newest.state == "unfinished" else ""


def newest_live(parent: Path = Path("runs")) -> Path | None:
    """The run directory or sweep under `parent` whose engine is running, the one started last; None
    if there is none."""
    from core.rundir import sweep

    try:
        files = (*parent.glob(f"*/{control.SOCKET}"), *parent.glob(f"*/{sweep.NAME}"))
        found = sorted((p.parent for p in files), key=os.path.getmtime, reverse=True)
    except OSError:
        return None
    return next((p for p in found if control.is_live(p) or sweep.is_live(p)), None)
