"""reduce(state, event) → state: the one fold that views, resume and attach share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from core import events
from core.events import AnyEvent, PlannedRun, RunFigures

Phase = Literal["queued", "running", "done", "failed"]
BackendPhase = Literal["starting", "ready", "failed", "stopped"]


class RunState(Struct, frozen=True):
    planned: PlannedRun
    phase: Phase = "queued"
    figures: RunFigures | None = None
    reason: str = ""
    started_at: float = 0.0
    ended_at: float = 0.0


class BackendState(Struct, frozen=True):
    phase: BackendPhase
    port: int = 0
    pid: int = 0
    command: tuple[str, ...] = ()
    log: str = ""
    ran: dict[str, str] = {}
    mismatches: tuple[str, ...] = ()
    reason: str = ""


class Live(Struct, frozen=True):
    """The run in progress, summed over its finished requests."""

    run: str
    requests: int
    finished: int = 0
    errors: int = 0
    output_tokens: int = 0


class Snapshot(Struct, frozen=True):
    """All that a view draws."""

    name: str = ""
    engine: str = ""
    runs: dict[str, RunState] = {}
    backends: dict[str, BackendState] = {}
    live: Live | None = None
    started_at: float = 0.0
    finished: bool = False

    def count(self, phase: Phase) -> int:
        return sum(r.phase == phase for r in self.runs.values())

    def eta_s(self) -> float | None:
        """Seconds that the queued runs will take at the mean pace of the finished ones; None before the first."""
        took = [r.ended_at - r.started_at for r in self.runs.values() if r.phase == "done"]
        if not took:
            return None
        return sum(took) / len(took) * (self.count("queued") + self.count("running"))


def fold(stream: Iterable[AnyEvent]) -> Snapshot:
    state = Snapshot()
    for event in stream:
        state = reduce(state, event)
    return state


def reduce(state: Snapshot, event: AnyEvent) -> Snapshot:
    """The state after `event`. Request events touch `live` only: the fold stays linear in the journal."""
    match event:
        case events.RequestFinished():
            return _request(state, event)
        case events.ExperimentStarted():
            runs = {r.id: RunState(r) for r in event.runs}
            return Snapshot(name=event.name, engine=event.engine, runs=runs, started_at=event.at)
        case events.ExperimentResumed():
            unfinished = {i: RunState(r.planned) if r.phase != "done" else r for i, r in state.runs.items()}
            return replace(state, runs=unfinished, live=None, finished=False)
        case events.RunStarted():
            state = _run(state, event.run, phase="running", started_at=event.at)
            return replace(state, live=Live(event.run, event.requests))
        case events.RunFinished():
            state = _run(state, event.run, phase="done", figures=event.figures, ended_at=event.at)
            return replace(state, live=None)
        case events.RunFailed():
            state = _run(state, event.run, phase="failed", reason=event.reason, ended_at=event.at)
            return replace(state, live=None)
        case events.ExperimentFinished():
            return replace(state, finished=True, live=None)
        case events.ExperimentInterrupted():
            stopped = {i: RunState(r.planned) if r.phase == "running" else r for i, r in state.runs.items()}
            return replace(state, runs=stopped, live=None)
        case _:
            return replace(state, backends={**state.backends, event.backend: _backend(state, event)})


def _request(state: Snapshot, event: events.RequestFinished) -> Snapshot:
    live = state.live
    if live is None or live.run != event.run:
        return state
    return replace(
        state,
        live=replace(
            live,
            finished=live.finished + 1,
            errors=live.errors + bool(event.error),
            output_tokens=live.output_tokens + event.output_tokens,
        ),
    )


def _run(state: Snapshot, run: str, **changes: object) -> Snapshot:
    known = state.runs.get(run)
    return state if known is None else replace(state, runs={**state.runs, run: replace(known, **changes)})


def _backend(
    state: Snapshot,
    event: events.BackendStarting | events.BackendReady | events.BackendFailed | events.BackendStopped,
) -> BackendState:
    known = state.backends.get(event.backend, BackendState("starting"))
    match event:
        case events.BackendStarting():
            return BackendState("starting", event.port, event.pid, tuple(event.command), event.log)
        case events.BackendReady():
            return replace(known, phase="ready", ran=event.ran, mismatches=tuple(event.mismatches))
        case events.BackendFailed():
            return replace(known, phase="failed", reason=event.reason)
        case events.BackendStopped():
            return known if known.phase == "failed" else replace(known, phase="stopped")
