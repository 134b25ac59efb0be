"""`gatescope --batch`: runs the engine in this process, prints one line per event, returns an exit
code. Never imports a UI."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from core import terminal
from core.analysis import results
from core.analysis.results import Results
from core.backends import choice, ports, supervise
from core.backends.choice import Kind
from core.commands import batch_lines
from core.engine.engine import Engine, Listener
from core.engine.servers import Kept
from core.errors import GatescopeError
from core.experiment import config, events, plan, registration, search, state
from core.experiment.cell import Cell
from core.experiment.config import Config
from core.experiment.control import ControlError, StopServer
from core.experiment.events import AnyEvent
from core.experiment.forcing import with_doses
from core.experiment.invocation import Invocation
from core.experiment.plan import Run
from core.experiment.registration import Registration
from core.experiment.saturation import Saturation
from core.experiment.search import Search
from core.experiment.tables import Backend, Experiment
from core.report.conclusion import conclude
from core.routing import recording as recorded
from core.routing.recording import Recording
from core.rundir import about as run_json
from core.rundir import directory as store
from core.rundir import journal, provenance, sweep
from core.rundir.directory import RunDirectory
from core.rundir.result import done_runs
from core.rundir.sweep import SweepFile
from core.terminal import printable, tell
from core.workload.dataset import Dataset

TRUSTED = (
    "--trust-remote-code: code of the model's repository runs on this machine, with your rights"
)


@dataclass(frozen=True, slots=True)
class Job:
    """The runs of one batch: all runs of a new run directory, or those missing in an old one."""

    config: Config
    kind: Kind
    runs: list[Run]
    ended: dict[str, str]  # run id → done, or cancelled by command
    resumed: bool
    requeued: Sequence[str] = ()  # runs cancelled in an earlier session, to be run now
    start: int | None = None  # the one start whose runs are run now; None: all
    search: Search | None = None  # of which this start is a point: it ends once that is missed
    kept: Kept | None = None  # where the server comes from, if one is up, and is left

    @property
    def now(self) -> list[Run]:
        """The runs that this session is about, ended or not."""
        return [run for run in self.runs if self.start in (None, run.start)]


def run(invocation: Invocation, *, json: bool) -> int:
    """The whole batch; its exit code. GatescopeError before anything is started."""
    if invocation.resume:
        return _resume(invocation, invocation.resume, json=json)
    return run_config(chosen(invocation), invocation, json=json)


def run_config(config: Config, invocation: Invocation, *, json: bool) -> int:
    """What `invocation` chooses of `config`, which it need not have come from; the exit code."""
    loaded, recording = recorded.of_config(config)
    job = _new(loaded, invocation, recording)
    path = invocation.out or store.new_path(job.config.experiment.name)
    with RunDirectory.create(path) as directory:
        _keep(recording, path)
        return run_in(directory, job, json=json)


def visit(
    path: Path,
    asked: SweepFile,
    cell: Cell,
    start: int,
    *,
    json: bool,
    retry: bool,
    kept: Kept | None = None,
) -> int:
    """One start of a sweep's cell in the cell's own run directory, with those of its runs that are
    not done; the exit code. GatescopeError before the server is started."""
    is_up = kept is not None and kept.serving is not None
    begun = (path / run_json.NAME).is_file()
    if not begun:  # killed before it was known what to run, so before anything ran
        shutil.rmtree(path, ignore_errors=True)
    with RunDirectory.reopen(path) if begun else RunDirectory.create(path) as directory:
        if begun:
            end_leftovers(directory.mark)
            job = _resumed(path, retry_cancelled=retry, is_up=is_up)
        else:
            job, recording = of_cell(cell, asked.only, is_up=is_up)
            _keep(recording, path)
        job = replace(job, start=start, search=asked.search, kept=kept)
        return _measured(directory, job, json=json)


def of_cell(
    cell: Cell, only: Sequence[str], *, is_up: bool = False
) -> tuple[Job, Recording | None]:
    """All runs of a sweep's cell, and what it replays. GatescopeError as `run`."""
    loaded, recording = recorded.of_config(cell.config)
    kind = kind_of(loaded)
    _check_recording(kind, loaded, recording)
    runs = list(plan.make(loaded, only).runs)
    return checked(Job(loaded, kind, runs, {}, resumed=False), is_up=is_up), recording


def _check_recording(kind: Kind, loaded: Config, recording: Recording | None) -> None:
    if recording:
        r = recording
        choice.check_recording(kind, loaded, layers=r.layers, experts=r.experts, top_k=r.top_k)


def _keep(recording: Recording | None, path: Path) -> None:
    """Write what is replayed into the run directory."""
    if recording:
        recording.write(path / recorded.FOLDER)
        for problem in recording.left_out:
            tell(printable(f"! not replayed: {problem}"))


def kind_of(config: Config) -> Kind:
    """The engine that serves all of a config's backends."""
    return choice.decide(config.experiment.engine, config.backends)


def chosen(invocation: Invocation) -> Config:
    """The config with what the command line changes in it."""
    loaded = config.load(invocation.config_path, invocation.settings)
    levels, patterns = list(invocation.levels), list(invocation.patterns)
    return with_doses(loaded, levels, patterns, invocation.replay)


def _resume(invocation: Invocation, path: Path, *, json: bool) -> int:
    with sweep.kept_out(path), RunDirectory.reopen(path) as directory:
        end_leftovers(directory.mark)
        retry = invocation.retry_cancelled
        return run_in(directory, _resumed(path, retry_cancelled=retry), json=json)


def _new(loaded: Config, invocation: Invocation, recording: Recording | None) -> Job:
    names = plan.select_backends(loaded, invocation.backends)
    used = [b for b in loaded.backends if b.name in names]
    engine = invocation.engine
    kind = choice.decide(config.engine(engine) if engine else loaded.experiment.engine, used)
    _check_recording(kind, loaded, recording)
    settled = config.with_starts(loaded, kind)
    made = plan.make(settled, invocation.only, invocation.backends)
    return checked(Job(settled, kind, list(made.runs), {}, resumed=False))


def end_leftovers(mark: str) -> None:
    """End servers left by an earlier gatescope, killed with everything that would have ended them.
    They hold ports and GPUs; we hold the lock that the mark is of, so nobody uses them."""
    if left := supervise.marked(mark):
        pids = ", ".join(str(p.pid) for p in left)
        noun = "process" if len(left) == 1 else "processes"
        tell(f"! ending {len(left)} {noun} left by an earlier start: {pids}")
        supervise.end(lambda: supervise.marked(mark))


def _resumed(path: Path, *, retry_cancelled: bool, is_up: bool = False) -> Job:
    """What is missing: the journal decides what is run, run.json how, since experiments.toml may
    have changed."""
    about, past = run_json.read(path), state.fold(journal.stream_events(path))
    runs = [r.run for r in past.runs.values()] or about.runs  # killed before the first event
    done = dict.fromkeys(done_runs(path), "done")
    cancelled = {i: "cancelled" for i, r in past.runs.items() if r.phase == "cancelled"}
    if retry_cancelled:
        runs = [r for r in runs if r.id not in cancelled] + [r for r in runs if r.id in cancelled]
        again = list(cancelled)
        job = Job(about.config, about.engine_kind, runs, done, resumed=True, requeued=again)
        return checked(job, is_up=is_up)
    if cancelled:
        tell(_left_cancelled(len(cancelled)))
    ended = cancelled | done
    job = Job(about.config, about.engine_kind, runs, ended, resumed=bool(past.runs))
    return checked(job, is_up=is_up)


def _left_cancelled(count: int) -> str:
    if count == 1:
        return "· 1 run stays cancelled; --retry-cancelled runs it too"
    return f"· {count} runs stay cancelled; --retry-cancelled runs them too"


def checked(job: Job, *, is_up: bool = False) -> Job:
    """`job`, if its engine is installed and its ports are free, or its server `is_up`; else
    GatescopeError, with nothing started."""
    names = {run.backend for run in job.runs if run.id not in job.ended}
    used = [backend for backend in job.config.backends if backend.name in names]
    choice.launcher(job.kind, used)
    choice.check_model(job.kind, job.config.model)
    choice.check_doses(job.kind, used, job.config, [r.imposed for r in job.runs if r.imposed])
    for backend in used if not is_up else ():
        ports.check(backend.name, backend.port)
    return job


def run_in(directory: RunDirectory, job: Job, *, json: bool) -> int:
    """Run what `job` is about, then report on the run directory; the exit code."""
    resume = f"gatescope --resume {shlex.quote(str(directory.path))}"
    try:
        code = _measured(directory, job, json=json)
    except OSError as error:
        how = f"fix this, then resume with: {resume}"
        tell(printable(f"! stopped: {error}; servers are down; {how}"))
        return 1
    reported = _reported(directory.path, _label(job), job.config.experiment)
    if code:
        tell(f"run what is missing with: {resume}")
    return code or reported


def _measured(directory: RunDirectory, job: Job, *, json: bool) -> int:
    """Run what `job` is about, and journal it; the exit code. OSError, with the servers ended,
    where the journal cannot be written."""
    datasets = plan.read_datasets({r.dataset: Path(r.file) for r in job.now})
    lines = batch_lines.Lines(json=json, past=state.fold(journal.stream_events(directory.path)))
    listen = _ending_early(job, datasets, lines, lambda: engine) if job.search else lines
    launcher = choice.launcher(job.kind)
    engine = Engine(job.config, launcher, directory, datasets, listen, job.kept)
    label = _label(job)
    if not (directory.path / run_json.NAME).exists():
        about = provenance.describe(job.config, job.runs, job.kind, label)
        directory.write_json(run_json.NAME, about)
    for event in _opening(job, label):
        directory.append(event)
        lines(event)
    if directory.unlocked:
        tell(printable(f"! {directory.unlocked}"))
    for backend in _used(job):
        if backend.trusts_remote_code:
            tell(f"! {backend.name}: {TRUSTED}")
    return asyncio.run(_until_done_or_signal(engine, job))


def _ending_early(
    job: Job,
    datasets: Mapping[str, Dataset],
    lines: batch_lines.Lines,
    engine: Callable[[], Engine],
) -> Listener:
    """Listens for `lines`, and ends the start once so many requests have missed the objective of
    its search that the others cannot change it."""
    assert job.search
    most = job.config.experiment.num_prompts
    requests = sum(min(most, len(datasets[run.dataset].prompts)) for run in job.now)
    watch = Saturation(job.search.slo, search.allowed_misses(job.search.share, requests))

    def listen(event: AnyEvent) -> None:
        lines(event)
        if watch(event):
            tell("· the objective is missed whatever comes: the rest of this start is left out")
            with contextlib.suppress(ControlError):  # its last run has just ended
                engine().obey(StopServer(job.now[0].backend))

    return listen


def _used(job: Job) -> list[Backend]:
    names = {run.backend for run in job.runs}
    return [backend for backend in job.config.backends if backend.name in names]


def _label(job: Job) -> str:
    return choice.label(job.kind, _used(job), job.config.model)


def _opening(job: Job, label: str) -> list[AnyEvent]:
    """The events that open this session in the journal."""
    opening: list[AnyEvent] = []
    if job.resumed:
        missing = sum(run.id not in job.ended for run in job.now)
        opening.append(
            events.ExperimentResumed(missing=missing, start=job.start, registered=_changed(job))
        )
    else:
        opening.append(
            events.ExperimentStarted(
                name=job.config.experiment.name,
                engine=label,
                runs=job.runs,
                registered=_registration(job.config, job),
            )
        )
    ours = {run.id for run in job.now}
    if requeued := [run for run in job.requeued if run in ours]:
        opening.append(events.RunRequeued(run=requeued[0], others=requeued[1:]))
    return opening


def _registration(asked: Config, job: Job) -> Registration:
    return registration.of(asked, list(dict.fromkeys(run.backend for run in job.runs)))


def _changed(job: Job) -> Registration | None:
    """What the file that the run came from asks for by now, if that is not what was registered."""
    try:
        now = _registration(config.load(job.config.path), job)
    except GatescopeError:  # it is gone, or wrong: run.json has all that is needed
        return None
    return None if now == _registration(job.config, job) else now


def _reported(path: Path, label: str, asked: Experiment) -> int:
    """Report what was measured, if anything; 1 if it is invalid and `asked.strict`, else 0."""
    groups = _results(path)
    if not any(group.by_label or group.imposed for group in groups):
        return 0
    validity = conclude(path, groups, label, graphs=asked.graphs)
    is_refused = validity.is_invalid and asked.strict
    if is_refused:
        tell("! strict = true, and results are invalid: see validity above")
    return 1 if is_refused else 0


async def _until_done_or_signal(engine: Engine, job: Job) -> int:
    """0 if all runs were done, 1 if some failed or a command stopped them, 128 + the number of a
    signal that stopped them."""
    now = job.now
    ended = {run.id: job.ended[run.id] for run in now if run.id in job.ended}
    task = asyncio.ensure_future(engine.run(now, ended))
    caught: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        caught.append(number)
        engine.stop(number.name)

    loop = asyncio.get_running_loop()
    for number in terminal.ending():
        loop.add_signal_handler(number, stop, number)
    try:
        return 0 if await task else 1
    except asyncio.CancelledError:
        return 128 + caught[0] if caught else 1


def _results(path: Path) -> list[Results]:
    """The results to report; none if no run was done."""
    with contextlib.suppress(GatescopeError):
        return results.of_run_directory(path)[0]
    return []
