"""`gatescope --batch`: the engine in this process, a line an event, an exit code. Never imports a
UI."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.analysis import results
from core.analysis.results import Results
from core.backends import choice, ports, supervise
from core.backends.choice import Kind
from core.engine.engine import Engine
from core.errors import GatescopeError, UsageError
from core.experiment import config, events, plan, state
from core.experiment.config import Config
from core.experiment.dose import Pattern
from core.experiment.events import AnyEvent
from core.experiment.narrate import sentence
from core.experiment.plan import Run
from core.report.conclusion import conclude
from core.rundir import about as run_json
from core.rundir import directory as store
from core.rundir import journal, provenance
from core.rundir.directory import RunDirectory
from core.rundir.result import done_runs
from core.terminal import printable, tell

if TYPE_CHECKING:
    pass

HEARTBEAT_S = 30.0
TRUSTED = (
    "--trust-remote-code: code of the model's repository runs on this machine, with your rights"
)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Lines:
    """Tells of events on stderr, one line each; with `json`, every event as a JSON line on stdout
    too."""

    def __init__(self, *, json: bool, past: state.Snapshot) -> None:
        self._json, self._state = json, past
        self._told_at = time.monotonic()

    def __call__(self, event: AnyEvent) -> None:
        self._state = state.reduce(self._state, event)
        if self._json:
            self._print(event)
        if line := sentence(event, self._state) or self._heartbeat():
            tell(printable(line))
            self._told_at = time.monotonic()

    def _print(self, event: AnyEvent) -> None:
        """Where stdout can no longer be written, the runs go on: the journal has every event."""
        try:
            sys.stdout.write(events.encode(event).decode() + "\n")
            sys.stdout.flush()
        except OSError as error:
            self._json = False
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            tell(f"! stdout: {error.strerror}: events go on in events.jsonl only")

    def _heartbeat(self) -> str | None:
        """A sign of life in a log file, where a run or a start takes long."""
        live = self._state.live
        if live is None or time.monotonic() - self._told_at < HEARTBEAT_S:
            return None
        return f"▶ {live.run}: {live.finished} of {live.requests} requests"


@dataclass(frozen=True, slots=True)
class Job:
    """What one batch does: all of a new run directory, or what is missing in an old one."""

    config: Config
    kind: Kind
    runs: list[Run]
    ended: dict[str, str]  # run id → done, or cancelled by command
    resumed: bool
    requeued: Sequence[str] = ()  # runs cancelled in an earlier session, that are to be run now


def run(
    *,
    config_path: Path,
    out: Path | None,
    only: Sequence[str],
    backends: Sequence[str],
    engine: str | None,
    resume: Path | None,
    retry_cancelled: bool = False,
    json: bool,
    levels: Sequence[float] = (),
    patterns: Sequence[Pattern] = (),
) -> int:
    """The whole batch; its exit code. GatescopeError before anything is started."""
    if resume:
        if only or backends or engine or out or levels or patterns:
            raise UsageError(
                "--resume goes on as the run was started; leave out --only, --backend, --engine, --dose, --pattern"
                " and --out"
            )
        with RunDirectory.reopen(resume) as directory:
            _end_leftovers(directory)
            return _run_in(directory, _resumed(resume, retry_cancelled=retry_cancelled), json=json)
    loaded = config.with_doses(config.load(config_path), list(levels), list(patterns))
    job = _new(loaded, only, backends, engine)
    with RunDirectory.create(out or store.new_path(job.config.experiment.name)) as directory:
        return _run_in(directory, job, json=json)


def _new(loaded: Config, only: Sequence[str], backends: Sequence[str], engine: str | None) -> Job:
    made = plan.make(loaded, only, backends)
    used = [b for b in loaded.backends if b.name in made.backends]
    kind = choice.decide(config.engine(engine) if engine else loaded.experiment.engine, used)
    return _checked(Job(loaded, kind, list(made.runs), {}, resumed=False))


def _end_leftovers(directory: RunDirectory) -> None:
    """The lock is ours, so servers of this directory have nobody left: an earlier gatescope was
    killed with all that would have ended them. They hold ports and GPUs that are wanted now."""
    if left := supervise.marked(directory.mark):
        pids = ", ".join(str(p.pid) for p in left)
        tell(
            f"! ending {len(left)} process{'es' * (len(left) > 1)} that an earlier start left: {pids}"
        )
        supervise.end(lambda: supervise.marked(directory.mark))


def _resumed(path: Path, *, retry_cancelled: bool) -> Job:
    """The journal rules on what is run, run.json on how; experiments.toml may have changed
    meanwhile."""
    about, past = run_json.read(path), state.fold(journal.stream_events(path))
    runs = [r.run for r in past.runs.values()] or about.runs  # killed before the first event
    done = dict.fromkeys(done_runs(path), "done")
    cancelled = {i: "cancelled" for i, r in past.runs.items() if r.phase == "cancelled"}
    if retry_cancelled:
        runs = [r for r in runs if r.id not in cancelled] + [r for r in runs if r.id in cancelled]
        return _checked(
            Job(about.config, about.engine_kind, runs, done, resumed=True, requeued=list(cancelled))
        )
    if cancelled:
        are = "runs stay as they are" if len(cancelled) > 1 else "run stays as it is"
        tell(
            f"· {len(cancelled)} cancelled {are}; --retry-cancelled runs {'them' if len(cancelled) > 1 else 'it'} too"
        )
    return _checked(
        Job(about.config, about.engine_kind, runs, cancelled | done, resumed=bool(past.runs))
    )


def _checked(job: Job) -> Job:
    """Ports free, engine there, datasets readable: else GatescopeError, with nothing started."""
    names = {run.backend for run in job.runs if run.id not in job.ended}
    used = [backend for backend in job.config.backends if backend.name in names]
    choice.launcher(job.kind, used)
    choice.check_doses(job.kind, used, job.config, [run.dose for run in job.runs if run.dose])
    for backend in used:
        ports.check(backend.name, backend.port)
    return job


def _run_in(directory: RunDirectory, job: Job, *, json: bool) -> int:
    datasets = plan.read_datasets({r.dataset: Path(r.file) for r in job.runs})
    lines = Lines(json=json, past=state.fold(journal.stream_events(directory.path)))
    engine = Engine(job.config, choice.launcher(job.kind), directory, datasets, lines)
    names = {run.backend for run in job.runs}
    ran = [backend for backend in job.config.backends if backend.name in names]
    label = choice.label(job.kind, ran, job.config.model)
    if not (directory.path / "run.json").exists():
        directory.write_json("run.json", provenance.describe(job.config, job.runs, job.kind, label))
    first: AnyEvent = (
        events.ExperimentResumed(missing=len(job.runs) - len(job.ended))
        if job.resumed
        else events.ExperimentStarted(name=job.config.experiment.name, engine=label, runs=job.runs)
    )
    for event in (first, *(events.RunRequeued(run=i) for i in job.requeued)):
        directory.append(event)
        lines(event)
    for backend in job.config.backends:
        if backend.name in names and backend.trusts_remote_code:
            tell(f"! {backend.name}: {TRUSTED}")
    try:
        code = asyncio.run(_until_done_or_signal(engine, job))
    except OSError as error:
        tell(
            printable(
                f"! stopped: {error}; servers are down; mend it and go on with: gatescope --resume {directory.path}"
            )
        )
        return 1
    groups = _results(directory.path)
    if any(group.by_label or group.forced for group in groups):
        validity = conclude(directory.path, groups, label)
        if validity.is_invalid and job.config.experiment.strict:
            tell("! strict = true, and results are invalid: see validity above")
            return code or 1
    return code


async def _until_done_or_signal(engine: Engine, job: Job) -> int:
    """0 or 1 by the runs; 128 + the signal's number where one stopped them; 1 where a command
    did."""
    task = asyncio.ensure_future(engine.run(job.runs, job.ended))
    caught: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        caught.append(number)
        engine.stop(number.name)

    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, stop, number)
    try:
        return 0 if await task else 1
    except asyncio.CancelledError:
        return 128 + caught[0] if caught else 1


def _results(path: Path) -> list[Results]:
    """What there is to report; nothing where no run was done."""
    with contextlib.suppress(GatescopeError):
        return results.of_run_directory(path)[0]
    return []
