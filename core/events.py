"""The vocabulary: everything that happens in an experiment, as frozen, tagged structs. JSON in, JSON out."""

from __future__ import annotations

import time

import msgspec


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=True):
    """`at`: wall-clock seconds since the epoch; for labels only, never for durations."""

    at: float = msgspec.field(default_factory=time.time)


class PlannedRun(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the queue."""

    id: str
    backend: str
    dataset: str
    label: str
    file: str


class RunFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What a finished run came to; null where nothing was measured."""

    completed: int
    failed: int
    duration_s: float
    mean_ttft_ms: float | None
    mean_tpot_ms: float | None
    output_throughput: float
    score: float | None
    cv: float | None
    aggregated_cv: float | None
    excess_cv: float | None
    imbalance_reason: str | None = None  # why a figure of the imbalance is null


class ExperimentStarted(Event, frozen=True, kw_only=True):
    name: str
    engine: str  # as it is shown everywhere: "vllm", or "builtin (NumPy, CPU)"
    runs: list[PlannedRun]


class ExperimentResumed(Event, frozen=True, kw_only=True):
    missing: int


class BackendStarting(Event, frozen=True, kw_only=True):
    backend: str
    port: int
    pid: int
    command: list[str]
    log: str


class BackendReady(Event, frozen=True, kw_only=True):
    backend: str
    seconds: float
    ran: dict[str, str]
    mismatches: list[str] = []  # asked ≠ ran


class BackendFailed(Event, frozen=True, kw_only=True):
    backend: str
    reason: str
    log_tail: list[str]


class BackendStopped(Event, frozen=True, kw_only=True):
    backend: str


class RunStarted(Event, frozen=True, kw_only=True):
    run: str
    requests: int


class RequestFinished(Event, frozen=True, kw_only=True):
    run: str
    index: int
    output_tokens: int
    ttft_ms: float | None
    tpot_ms: float | None
    error: str = ""


class RunFinished(Event, frozen=True, kw_only=True):
    run: str
    figures: RunFigures
    result: str  # path inside the run directory


class RunFailed(Event, frozen=True, kw_only=True):
    run: str
    reason: str


class ExperimentFinished(Event, frozen=True, kw_only=True):
    done: int
    failed: int


class ExperimentInterrupted(Event, frozen=True, kw_only=True):
    signal: str


AnyEvent = (
    ExperimentStarted
    | ExperimentResumed
    | BackendStarting
    | BackendReady
    | BackendFailed
    | BackendStopped
    | RunStarted
    | RequestFinished
    | RunFinished
    | RunFailed
    | ExperimentFinished
    | ExperimentInterrupted
)

_decoder: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)


def encode(event: AnyEvent) -> bytes:
    """One line of the journal, without its newline."""
    return msgspec.json.encode(event)


def decode(line: bytes) -> AnyEvent:
    """msgspec.DecodeError where the line is not a whole event."""
    return _decoder.decode(line)
