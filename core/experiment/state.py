"""reduce(state, event) → state: the one fold that views, resume and attach share."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, Literal, cast

from msgspec import Struct
from msgspec.structs import replace

from core.experiment import events
from core.experiment.events import AnyEvent, RunFigures, Sampled
from core.experiment.plan import Run

Phase = Literal["queued", "running", "done", "failed", "cancelled"]
BackendPhase = Literal["starting", "ready", "stopping", "failed", "stopped"]

AROUND_A_LOAD_S = 60.0
SAMPLES_KEPT = 600  # ten minutes: what a chart shows


class RunState(Struct, frozen=True):
    """One line of the queue."""

    run: Run
    phase: Phase = "queued"
    score: float | None = None  # predicted
    figures: RunFigures | None = None
    result: str = ""  # path inside the run directory
    reason: str = ""
    started_at: float = 0.0
    ended_at: float = 0.0


class BackendState(Struct, frozen=True):
    """One server. `step` is the part of its start that it is in, since `since` (wall clock)."""

    phase: BackendPhase
    since: float = 0.0
    step: str = ""
    port: int = 0
    pid: int = 0
    command: tuple[str, ...] = ()
    log: str = ""
    start: int = 1
    ready_after_s: float | None = None
    ran: dict[str, str] = {}
    mismatches: tuple[str, ...] = ()
    reason: str = ""
    log_tail: tuple[str, ...] = ()


class Live(Struct, frozen=True):
    """The run in progress. The lists hold a value for each request that has ended well, in ms."""

    run: str
    requests: int
    output_len: int | None = None  # tokens requested per answer
    finished: int = 0
    errors: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    ttft_ms: tuple[float, ...] = ()
    tpot_ms: tuple[float, ...] = ()
    itl_ms: tuple[float, ...] = ()
    e2e_ms: tuple[float, ...] = ()


class Snapshot(Struct, frozen=True):
    """All that a view draws. `runs` stand in the order of the queue."""

    name: str = ""
    engine: str = ""
    runs: dict[str, RunState] = {}
    backends: dict[str, BackendState] = {}
    live: Live | None = None
    samples: tuple[Sampled, ...] = ()  # without early ones
    newest: Sampled | None = None  # also an early one
    started_at: float = 0.0
    ended_at: float = 0.0
    finished: bool = False
    interrupted: str = ""  # by what

    def count(self, phase: Phase) -> int:
        return sum(r.phase == phase for r in self.runs.values())

    def starts(self, backend: str) -> int:
        """How many times a backend's server is started for its runs."""
        own = (r.run.start for r in self.runs.values() if r.run.backend == backend)
        return max(own, default=1)

    def start_of(self, backend: str, number: int) -> str:
        """`start 2 of 3`; nothing where a backend has one start."""
        starts = self.starts(backend)
        return f"start {number} of {starts}" if starts > 1 else ""

    def eta_s(self) -> float | None:
        """Seconds that the runs left will take at the mean pace of the finished ones; None before
        the first."""
        took = [
            _took_s(r.figures.duration_s, r)
            for r in self.runs.values()
            if r.phase == "done" and r.figures
        ]
        if not took:
            return None
        return sum(took) / len(took) * (self.count("queued") + self.count("running"))


def _took_s(measured_s: float, run: RunState) -> float:
    """By the wall clock, unless that was set meanwhile: a run lasts as long as its load, and a
    little more."""
    return max(measured_s, min(run.ended_at - run.started_at, measured_s + AROUND_A_LOAD_S))


def fold(stream: Iterable[AnyEvent], state: Snapshot | None = None) -> Snapshot:
    """The state after all of `stream`, from `state` or from nothing.

    Requests that follow each other are taken together: what is known of a run is copied once for
    all of them.
    """
    state = state or Snapshot()
    for are_requests, group in itertools.groupby(
        stream, lambda e: isinstance(e, events.RequestFinished)
    ):
        if are_requests:
            state = _requests(state, cast(Iterable[events.RequestFinished], group))
        else:
            for event in group:
                state = reduce(state, event)
    return state


def reduce(state: Snapshot, event: AnyEvent) -> Snapshot:
    """The state after `event`. Events of requests and samples touch no run: the fold stays linear
    in the journal."""
    match event:
        case events.RequestFinished():
            return _requests(state, [event])
        case Sampled():
            if event.early:
                return replace(state, newest=event)
            samples = (*state.samples, event)[-SAMPLES_KEPT:]
            return replace(state, samples=samples, newest=event)
        case events.RunStarted():
            state = _run(state, event.run, phase="running", reason="", started_at=event.at)
            return replace(state, live=Live(event.run, event.requests, event.output_len))
        case events.RunFinished():
            done = {"figures": event.figures, "result": event.result, "score": event.figures.score}
            return _ended(state, event.run, phase="done", ended_at=event.at, **done)
        case events.RunFailed():
            return _ended(state, event.run, phase="failed", reason=event.reason, ended_at=event.at)
        case events.RunCancelled():
            kept = f"{event.completed} requests kept" if event.completed else ""
            for other in event.others:
                state = _run(state, other, phase="cancelled", reason="", ended_at=event.at)
            return _ended(state, event.run, phase="cancelled", reason=kept, ended_at=event.at)
        case (
            events.RunRequeued()
            | events.RunsAdded()
            | events.QueueReordered()
            | events.ScoresPredicted()
        ):
            return _queue(state, event)
        case (
            events.ExperimentStarted()
            | events.ExperimentResumed()
            | events.ExperimentFinished()
            | events.ExperimentInterrupted()
        ):
            return _experiment(state, event)
        case _:
            return replace(
                state, backends={**state.backends, event.backend: _backend(state, event)}
            )


def _experiment(
    state: Snapshot,
    event: events.ExperimentStarted
    | events.ExperimentResumed
    | events.ExperimentFinished
    | events.ExperimentInterrupted,
) -> Snapshot:
    match event:
        case events.ExperimentStarted():
            runs = {r.id: RunState(r) for r in event.runs}
            return Snapshot(name=event.name, engine=event.engine, runs=runs, started_at=event.at)
        case events.ExperimentResumed():
            unfinished = {
                i: _queued(r) if _is_taken_up(r, event.start) else r for i, r in state.runs.items()
            }
            return replace(
                state,
                runs=unfinished,
                live=None,
                backends={},
                finished=False,
                interrupted="",
                ended_at=0.0,
            )
        case events.ExperimentFinished():
            return replace(state, finished=True, live=None, ended_at=event.at)
        case events.ExperimentInterrupted():
            stopped = {i: _queued(r) if r.phase == "running" else r for i, r in state.runs.items()}
            return replace(state, runs=stopped, live=None, interrupted=event.by, ended_at=event.at)


def _is_taken_up(run: RunState, start: int | None) -> bool:
    """Whether a session that resumes, for one start or for all, runs it."""
    return run.phase not in ("done", "cancelled") and start in (None, run.run.start)


def _queue(
    state: Snapshot,
    event: events.RunRequeued | events.RunsAdded | events.QueueReordered | events.ScoresPredicted,
) -> Snapshot:
    runs = dict(state.runs)
    match event:
        case events.RunRequeued():
            for run in (event.run, *event.others):
                if known := runs.pop(run, None):
                    runs[run] = _queued(known)
        case events.RunsAdded():
            scores = {r.run.dataset: r.score for r in runs.values()}
            runs |= {r.id: RunState(r, score=scores.get(r.dataset)) for r in event.runs}
        case events.QueueReordered():
            runs |= {i: runs.pop(i) for i in event.runs if i in runs}
        case events.ScoresPredicted():
            runs = {
                i: replace(r, score=event.scores.get(r.run.dataset, r.score))
                for i, r in runs.items()
            }
    return replace(state, runs=runs)


def _queued(run: RunState) -> RunState:
    return RunState(run.run, score=run.score)


def _requests(state: Snapshot, finished: Iterable[events.RequestFinished]) -> Snapshot:
    live = state.live
    own = [e for e in finished if live and e.run == live.run]
    if live is None or not own:
        return state
    names = ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms")
    values = {
        n: (*getattr(live, n), *(v for e in own if (v := getattr(e, n)) is not None)) for n in names
    }
    live = replace(
        live,
        finished=live.finished + len(own),
        errors=live.errors + sum(1 for e in own if e.error),
        input_tokens=live.input_tokens + sum(e.input_tokens or 0 for e in own),
        output_tokens=live.output_tokens + sum(e.output_tokens for e in own),
        **values,
    )
    return replace(state, live=live)


def _run(state: Snapshot, run: str, **changes: Any) -> Snapshot:
    known = state.runs.get(run)
    return (
        state
        if known is None
        else replace(state, runs={**state.runs, run: replace(known, **changes)})
    )


def _ended(state: Snapshot, run: str, **changes: Any) -> Snapshot:
    live = None if state.live and state.live.run == run else state.live
    return replace(_run(state, run, **changes), live=live)


def _backend(
    state: Snapshot,
    event: events.BackendStarting
    | events.BackendPhase
    | events.BackendReady
    | events.BackendFailed
    | events.BackendStopping
    | events.BackendStopped,
) -> BackendState:
    known = state.backends.get(event.backend, BackendState("starting", event.at))
    match event:
        case events.BackendStarting():
            command = tuple(event.command)
            where = (event.port, event.pid, command, event.log, event.start)
            return BackendState("starting", event.at, "", *where)
        case events.BackendPhase():
            return replace(known, step=event.phase, since=event.at)
        case events.BackendReady():
            asked = {
                "ran": event.ran,
                "mismatches": tuple(event.mismatches),
                "ready_after_s": event.seconds,
            }
            return replace(known, phase="ready", step="", since=event.at, **asked)
        case events.BackendFailed():
            tail = tuple(event.log_tail)
            return replace(
                known, phase="failed", since=event.at, reason=event.reason, log_tail=tail
            )
        case events.BackendStopping():
            return (
                known
                if known.phase == "failed"
                else replace(known, phase="stopping", since=event.at)
            )
        case events.BackendStopped():
            return (
                known
                if known.phase == "failed"
                else replace(known, phase="stopped", since=event.at)
            )
