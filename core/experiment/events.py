"""The vocabulary: everything that happens in an experiment, as frozen, tagged structs. JSON in,
JSON out."""

from __future__ import annotations

import time

import msgspec

from core.experiment.plan import Run
from core.experiment.registration import Registration
from core.files import NOT_JSON


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=True):
    """`at`: wall-clock seconds since the epoch; for labels only, never for durations."""

    at: float = msgspec.field(default_factory=time.time)


class Latency(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Milliseconds over `n` requests (for ITL: over `n` gaps). `p99` is null below n = 100: there
    only `max` is meaningful."""

    n: int
    mean: float
    p50: float
    p90: float
    p99: float | None
    max: float


class RunFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of a finished run; null where nothing was measured."""

    completed: int
    failed: int
    duration_s: float
    output_throughput: float | None
    latencies: dict[str, Latency]  # by ttft, tpot, itl, e2e; a metric without a value is left out
    score: float | None
    cv: float | None
    aggregated_cv: float | None
    excess_cv: float | None
    rank_imbalance: float | None = None
    work_over_fair: float | None = None  # of decode steps' busiest rank (core.routing.busiest)
    imbalance_reason: str | None = None  # why a figure of the imbalance is null
    decode_step_ms: float | None = None  # median step without prompt tokens, from the gate log


class Arrived(msgspec.Struct, frozen=True, kw_only=True):
    """Medians in ms of what arrived since the sample before: first tokens, gaps between tokens,
    and the TPOTs of requests that ended; null where none did."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    itl_ms: float | None = None


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU at one moment; null where NVML does not know it, as on a MIG slice, or of a GPU that
    shares the host's memory. `throttled`: what limits its clocks."""

    index: int
    memory_used_gib: float | None = None
    memory_total_gib: float | None = None
    utilisation_pct: int | None = None
    power_w: float | None = None
    temperature_c: int | None = None
    sm_clock_mhz: int | None = None
    throttled: list[str] | None = None


class ServerLoad(msgspec.Struct, frozen=True, kw_only=True):
    """A server's own counts at /metrics."""

    running: int
    waiting: int
    kv_cache: float  # share in use, 0 to 1
    preemptions: int
    prefix_cache_hits: int = 0  # prompt tokens that were not computed


class LiveImbalance(msgspec.Struct, frozen=True, kw_only=True):
    """The router over the steps of the last second. `share`: of its layer's tokens, that the
    hottest expert got."""

    cv: float
    excess_cv: float | None
    rank_imbalance: float | None
    layer: int
    expert: int
    share: float


class ExperimentStarted(Event, frozen=True, kw_only=True):
    name: str
    engine: str  # as it is shown everywhere: "vllm", or "builtin (NumPy, CPU)"
    runs: list[Run]
    registered: Registration | None = None


class ExperimentResumed(Event, frozen=True, kw_only=True):
    """`start`: the one start whose runs are run now; None: all. `registered`: what the config asks
    for by now, if that has changed; it has no effect."""

    missing: int
    start: int | None = None
    registered: Registration | None = None


class ScoresPredicted(Event, frozen=True, kw_only=True):
    scores: dict[str, float | None]  # by dataset


class RunsAdded(Event, frozen=True, kw_only=True):
    runs: list[Run]


class RunRequeued(Event, frozen=True, kw_only=True):
    run: str
    others: list[str] = []  # queued again by the same command


class QueueReordered(Event, frozen=True, kw_only=True):
    runs: list[str]  # every queued run, in its new order


class BackendStarting(Event, frozen=True, kw_only=True):
    backend: str
    port: int
    pid: int
    command: list[str]
    log: str
    start: int = 1  # which of the backend's starts it serves
    kept: bool = False  # it is up already: another run directory's runs were its first


class BackendPhase(Event, frozen=True, kw_only=True):
    backend: str
    phase: str  # of its start: "loading weights", …


class BackendReady(Event, frozen=True, kw_only=True):
    backend: str
    seconds: float  # from its command; 0 of a server that was kept
    ran: dict[str, str]
    mismatches: list[str] = []  # running but not requested


class BackendFailed(Event, frozen=True, kw_only=True):
    backend: str
    reason: str
    log_tail: list[str]


class BackendStopping(Event, frozen=True, kw_only=True):
    backend: str


class BackendStopped(Event, frozen=True, kw_only=True):
    backend: str
    left: list[str] = []  # a sentence for GPU memory or a process that is still there
    kept: bool = False  # it stays up, for the runs of another run directory


class RunStarted(Event, frozen=True, kw_only=True):
    run: str
    requests: int
    output_len: int | None = None  # tokens requested per answer; null: as many as the server likes


class RequestFinished(Event, frozen=True, kw_only=True):
    run: str
    index: int
    input_tokens: int | None
    output_tokens: int
    ttft_ms: float | None
    tpot_ms: float | None
    itl_ms: float | None  # median gap
    e2e_ms: float | None
    error: str = ""


class Sampled(Event, frozen=True, kw_only=True):
    """Once a second during a run. Null where the server or this machine does not report it.

    `early`: told between two others, as soon as the first token or the first gap between tokens has
    arrived: counts, TTFT and ITL alone.
    """

    backend: str
    run: str
    sent: int  # requests sent so far; under Poisson arrivals those to come are not in it
    first_tokens: int  # requests that have one
    output_tokens: int
    finished: int  # with or without an error; the others that were sent are in flight
    ttft: Latency | None = None  # of every first token so far
    itl: Latency | None = None  # so far, from a sample of the gaps, to within 0.5%
    arrived: Arrived | None = None
    server: ServerLoad | None = None
    gpus: list[Gpu] = []
    imbalance: LiveImbalance | None = None
    early: bool = False


class RunFinished(Event, frozen=True, kw_only=True):
    run: str
    figures: RunFigures
    result: str  # path inside the run directory


class RunFailed(Event, frozen=True, kw_only=True):
    run: str
    reason: str


class RunCancelled(Event, frozen=True, kw_only=True):
    run: str
    completed: int = 0  # requests whose figures are kept in a partial result
    others: list[str] = []  # runs that waited, cancelled by the same command


class ExperimentFinished(Event, frozen=True, kw_only=True):
    done: int
    failed: int
    cancelled: int = 0


class ExperimentInterrupted(Event, frozen=True, kw_only=True):
    by: str  # a signal's name, or "stop"


AnyEvent = (
    ExperimentStarted
    | ExperimentResumed
    | ScoresPredicted
    | RunsAdded
    | RunRequeued
    | QueueReordered
    | BackendStarting
    | BackendPhase
    | BackendReady
    | BackendFailed
    | BackendStopping
    | BackendStopped
    | RunStarted
    | RequestFinished
    | Sampled
    | RunFinished
    | RunFailed
    | RunCancelled
    | ExperimentFinished
    | ExperimentInterrupted
)

_decoder: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)


def encode(event: AnyEvent) -> bytes:
    """One line of the journal, without its newline."""
    return msgspec.json.encode(event)


def decode(line: bytes) -> AnyEvent:
    """msgspec.DecodeError where the line is not a whole event."""
    try:
        return _decoder.decode(line)
    except NOT_JSON as error:
        raise msgspec.DecodeError(str(error)) from None


POWER_CAP = "the power limit"
