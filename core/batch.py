"""`gatescope --batch`: the engine in this process, a line an event, an exit code. Never imports a UI."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from core import analysis, config, events, plan, state, store
from core.analysis import Results
from core.backends import builtin
from core.backends import server as servers
from core.config import Config, ConfigError
from core.engine import Engine, describe
from core.events import AnyEvent, RunFigures
from core.plan import Plan
from core.store import RunDirectory

HEARTBEAT_S = 30.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Lines:
    """Tells of events on stderr, one line each; with `json`, every event as a JSON line on stdout too."""

    def __init__(self, *, json: bool, past: state.Snapshot) -> None:
        self._json, self._state = json, past
        self._told_at = time.monotonic()

    def __call__(self, event: AnyEvent) -> None:
        self._state = state.reduce(self._state, event)
        if self._json:
            sys.stdout.write(events.encode(event).decode() + "\n")
            sys.stdout.flush()
        if line := self._line(event):
            tell(line)
            self._told_at = time.monotonic()

    def _line(self, event: AnyEvent) -> str | None:
        match event:
            case events.ExperimentStarted():
                return f"{event.name}: {len(event.runs)} runs · engine: {event.engine}"
            case events.ExperimentResumed():
                return f"resuming: {event.missing} of {len(self._state.runs)} runs are missing"
            case events.BackendStarting():
                return f"~ {event.backend}: starting on port {event.port}, pid {event.pid}, log {event.log}"
            case events.BackendReady():
                ran = ", ".join(f"{k} {v}" for k, v in event.ran.items())
                return f"● {event.backend}: ready after {event.seconds:.1f} s: {ran}"
            case events.BackendFailed():
                tail = "".join(f"\n    {line}" for line in event.log_tail)
                return f"! {event.backend}: {event.reason}; the end of its log:{tail}"
            case events.RunFinished():
                return f"✓ {self._place()} {event.run:<14} {figures_line(event.figures)}{self._eta()}"
            case events.RunFailed():
                return f"! {self._place()} {event.run:<14} failed: {event.reason}{self._eta()}"
            case events.RequestFinished() if event.error:
                return f"! request {event.index} of {event.run}: {event.error}"
            case events.RequestFinished() if time.monotonic() - self._told_at > HEARTBEAT_S:
                live = self._state.live
                return f"▶ {live.run}: {live.finished} of {live.requests} requests" if live else None
            case events.ExperimentInterrupted():
                return f"× stopped by {event.signal}; what was done is kept"
        return None

    def _place(self) -> str:
        ended = self._state.count("done") + self._state.count("failed")
        total = len(self._state.runs)
        return f"run {ended:>{len(str(total))}} of {total}"

    def _eta(self) -> str:
        eta = self._state.eta_s()
        return "" if eta is None else f"  ETA {minutes(eta)}"


def figures_line(figures: RunFigures) -> str:
    ttft, tpot = _shown(figures.mean_ttft_ms, "7.1f"), _shown(figures.mean_tpot_ms, "6.2f")
    return (
        f"TTFT {ttft} ms  TPOT {tpot} ms  {figures.output_throughput:7.1f} tok/s"
        f"  CV {_shown(figures.cv, '.3f')}  excess {_shown(figures.excess_cv, '.3f')}"
    )


def minutes(seconds: float) -> str:
    whole = round(seconds)
    return (
        f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
        if whole >= 3600
        else f"{whole // 60}:{whole % 60:02d}"
    )


def run(
    *,
    config_path: Path,
    out: Path | None,
    only: Sequence[str],
    backends: Sequence[str],
    engine: str | None,
    resume: Path | None,
    json: bool,
) -> int:
    """The whole batch; its exit code. ConfigError before anything is started."""
    loaded = store.read_config(resume) if resume else config.load(config_path)
    only, backends = _selection(resume, only, backends)
    made = plan.make(loaded, only, backends)
    _check_engine(loaded, engine)
    for backend in made.backends:
        servers.check_port(backend.name, backend.port)
    directory = (
        RunDirectory.reopen(resume) if resume else RunDirectory.create(out or store.new_path(loaded.experiment.name))
    )
    with directory:
        return _run_in(directory, loaded, made, json=json, resumed=resume is not None)


def _selection(
    resume: Path | None, only: Sequence[str], backends: Sequence[str]
) -> tuple[Sequence[str], Sequence[str]]:
    """On resume, what the run was started with: what is missing is missing from that."""
    if resume is None:
        return only, backends
    if only or backends:
        raise ConfigError("--resume goes on with the runs it was started with; leave out --only and --backend")
    about = store.read_result(resume / "run.json")
    return about["only"], about["backends"]


def _check_engine(loaded: Config, wanted: str | None) -> None:
    if (wanted or loaded.experiment.engine) == "vllm":
        raise ConfigError('engine "vllm" cannot be launched by this version yet; use --engine builtin')


def _run_in(directory: RunDirectory, loaded: Config, made: Plan, *, json: bool, resumed: bool) -> int:
    past = state.fold(store.read_events(directory.path))
    finished = store.done_runs(directory.path)
    lines = Lines(json=json, past=past)
    engine = Engine(loaded, made, directory, lines)
    if not resumed:
        directory.write_json("run.json", describe(loaded, made))
    first: AnyEvent = (
        events.ExperimentResumed(missing=sum(r.id not in finished for r in made.runs))
        if resumed and past.runs
        else events.ExperimentStarted(name=loaded.experiment.name, engine=builtin.ENGINE, runs=_planned(made))
    )
    directory.append(first)
    lines(first)
    code = asyncio.run(_until_done_or_signal(engine, finished))
    groups = _results(directory.path)
    if any(group.by_label for group in groups):
        report(directory.path, groups)
    return code


def _planned(made: Plan) -> list[events.PlannedRun]:
    return [
        events.PlannedRun(id=r.id, backend=r.backend, dataset=r.dataset, label=r.label, file=str(r.path))
        for r in made.runs
    ]


async def _until_done_or_signal(engine: Engine, finished: set[str]) -> int:
    """0 or 1 by the runs; 128 + the signal's number where one stopped them."""
    task = asyncio.ensure_future(engine.run(finished))
    caught: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        if not caught:
            caught.append(number)
            task.cancel()

    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, stop, number)
    try:
        return 0 if await task else 1
    except asyncio.CancelledError:
        if not caught:
            raise
        engine.interrupted(caught[0].name)
        return 128 + caught[0]


def _results(path: Path) -> list[Results]:
    """What there is to report; nothing where no run was done."""
    with contextlib.suppress(ConfigError):
        return analysis.of_run_directory(path)[0]
    return []


def report(path: Path, groups: Sequence[Results]) -> None:
    """Write summary.csv, summary.json and the PNGs, and tell of them with a table and a scatter plot."""
    from core import plots

    rows = analysis.summary_rows(groups)
    store.write_whole(path / "summary.csv", analysis.summary_csv(rows).encode())
    store.write_whole(path / "summary.json", store.formatted(rows))
    tell("")
    tell(f"engine: {builtin.ENGINE}: its times say nothing about GPUs")
    tell(table(groups))
    files = []
    for metric in analysis.METRICS:
        for axis in ("real", "predicted"):
            with contextlib.suppress(ConfigError):  # a run of one data set may have no point on an axis
                drawn = analysis.series(groups, metric, axis, builtin.ENGINE)
                files.append(plots.png(drawn, path / "graphs" / f"{metric}-{axis}.png"))
                if (metric, axis) == ("mean_tpot_ms", "real"):
                    tell("")
                    tell(plots.text(drawn, min(terminal_columns(), 110), 22, colour=sys.stderr.isatty()))
    tell("")
    for file in (*files, path / "summary.csv"):
        tell(f"wrote {file}")
    for group in groups:
        tell(f"results: {path / group.name / 'results_json'} ({len(group.by_label)} runs)")


def table(groups: Sequence[Results]) -> str:
    """Medians over each backend's runs."""
    head = f"{'backend':<14}{'runs':>5}{'TTFT ms':>10}{'TPOT ms':>10}{'tok/s':>10}"
    rows = [f"{head}{'CV':>8}{'floor':>8}{'excess':>8}{'rank max/mean':>15}   (medians over runs)"]
    for group in groups:
        m = analysis.backend_medians(group)
        rows.append(
            f"{group.name:<14}{len(group.by_label):>5}{_shown(m['mean_ttft_ms'], '10.1f'):>10}"
            f"{_shown(m['mean_tpot_ms'], '10.2f'):>10}{_shown(m['output_throughput'], '10.1f'):>10}"
            f"{_shown(m['per_step_cv'], '8.3f'):>8}{_shown(m['noise_floor'], '8.3f'):>8}"
            f"{_shown(m['excess_cv'], '8.3f'):>8}{_shown(m['rank_imbalance'], '15.2f'):>15}"
        )
    return "\n".join(rows)


def terminal_columns() -> int:
    return shutil.get_terminal_size((100, 24)).columns


def tell(text: str) -> None:
    """The talk goes to stderr; stdout is for data. A closed stderr does not stop the runs."""
    with contextlib.suppress(BrokenPipeError, OSError):
        os.write(2, (text + "\n").encode(errors="replace"))


def _shown(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
