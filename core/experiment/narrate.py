"""Events in words: the lines that --batch prints and that the UI's event pane shows."""

from __future__ import annotations

from collections.abc import Sequence

from core.experiment import dose, events
from core.experiment.events import AnyEvent, RunFigures
from core.experiment.state import Snapshot
from core.terminal import clock, shown


def sentence(event: AnyEvent, snapshot: Snapshot) -> str | None:
    """What happened, in one line; `snapshot` is the state after it. None for what happens every
    second."""
    match event:
        case events.ExperimentStarted():
            return f"{event.name}: {len(event.runs)} runs · engine: {event.engine}"
        case events.ExperimentResumed():
            return f"↻ resuming: {event.missing} of {len(snapshot.runs)} runs are missing"
        case events.ExperimentFinished():
            failed = f", {event.failed} failed" if event.failed else ""
            cancelled = f", {event.cancelled} cancelled" if event.cancelled else ""
            return f"✓ finished: {event.done} runs done{failed}{cancelled}"
        case events.ExperimentInterrupted():
            return f"× stopped by {event.by}; what was done is kept"
        case events.RequestFinished():
            return f"! request {event.index} of {event.run}: {event.error}" if event.error else None
        case events.RunsAdded():
            return f"· queued: {', '.join(r.id for r in event.runs)}"
        case events.RunRequeued():
            return f"· {event.run}{_others(event.others)} queued again"
        case events.QueueReordered():
            return "· queue reordered"
        case events.RunStarted() | events.Sampled() | events.ScoresPredicted():
            return None
        case events.RunFinished() | events.RunFailed() | events.RunCancelled():
            return _run(event, snapshot)
        case _:
            return _backend(event, snapshot)


def _run(
    event: events.RunFinished | events.RunFailed | events.RunCancelled, snapshot: Snapshot
) -> str:
    total = len(snapshot.runs)
    ended = total - snapshot.count("queued") - snapshot.count("running")
    place = f"run {ended:>{len(str(total))}} of {total} {event.run:<14}"
    eta = snapshot.eta_s()
    left = "" if eta is None else f"  ETA {clock(eta)}"
    if dose.of_label(event.run):
        place = f"{place} {dose.REPLAYED if dose.is_replay(event.run) else dose.NAME} "
    known = snapshot.runs.get(event.run)
    if known and (start := snapshot.start_of(known.run.backend, known.run.start)):
        place = f"{place} {start} "
    match event:
        case events.RunFinished():
            return f"✓ {place} {figures_line(event.figures)}{left}"
        case events.RunFailed():
            return f"! {place} failed: {_reason(event, snapshot)}{left}"
        case events.RunCancelled():
            kept = f", {event.completed} requests kept" if event.completed else ""
            return f"× {place} cancelled{_others(event.others)}{kept}{left}"


def _reason(event: events.RunFailed, snapshot: Snapshot) -> str:
    """Why a run failed; what its server's own line has said is not said again for each run."""
    backend = event.run.partition("/")[0]
    server = snapshot.backends.get(backend)
    if server and server.phase == "failed" and server.reason == event.reason:
        return f"server {backend} failed, for the reason above"
    return event.reason


def _others(others: Sequence[str]) -> str:
    return f" with {len(others)} more" if others else ""


def _backend(
    event: events.BackendStarting
    | events.BackendPhase
    | events.BackendReady
    | events.BackendFailed
    | events.BackendStopping
    | events.BackendStopped,
    snapshot: Snapshot,
) -> str | None:
    match event:
        case events.BackendStarting():
            where = f"port {event.port}, pid {event.pid}, log {event.log}"
            start = snapshot.start_of(event.backend, event.start)
            how = "the server that is up, on" if event.kept else "starting on"
            return f"~ {event.backend}: {f'{start}, ' if start else ''}{how} {where}"
        case events.BackendPhase():
            return f"~ {event.backend}: {event.phase}"
        case events.BackendReady():
            ran = ", ".join(f"{k} {v}" for k, v in event.ran.items())
            wrong = "".join(f"\n! {event.backend}: {m}" for m in event.mismatches)
            after = f" after {event.seconds:.1f} s" if event.seconds else ""
            return f"● {event.backend}: ready{after}: {ran}{wrong}"
        case events.BackendFailed():
            tail = "".join(f"\n    {line}" for line in event.log_tail)
            end = f"; the end of its log:{tail}" if tail else ""
            return f"! {event.backend}: {event.reason}{end}"
        case events.BackendStopping():
            return None
        case events.BackendStopped():
            left = "".join(f"\n! {event.backend}: {sentence}" for sentence in event.left)
            ended = "left up, in case the next cell can use it" if event.kept else "stopped"
            return f"○ {event.backend}: {ended}{left}"


def figures_line(figures: RunFigures) -> str:
    """Mean TTFT and TPOT, throughput, CV and excess CV of a finished run."""
    means = {name: latency.mean for name, latency in figures.latencies.items()}
    return (
        f"TTFT {shown(means.get('ttft'), '7.1f')} ms  TPOT {shown(means.get('tpot'), '6.2f')} ms"
        f"  {shown(figures.output_throughput, '7.1f')} tok/s"
        f"  CV {shown(figures.cv, '.3f')}  excess {shown(figures.excess_cv, '.3f')}"
    )
