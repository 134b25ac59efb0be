"""How far a result's times can be trusted: health of the load workers, and rules for warnings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.load.record import KERNEL_STAMPS, USER_STAMPS, Lag, WorkerHealth

if TYPE_CHECKING:
    from core.load.metrics import Metrics

BUSY_SHARE = 0.9
BLURRED_SHARE = 0.05
LAG_SHARE = 0.1
TIMER_GRAIN_MS = 2.0  # about the precision of the event loop's timers
LATE_NS = 5_000_000


@dataclass(frozen=True, slots=True)
class Trust:
    """How far one run's times can be trusted.

    `limited_by_client`: a warning says that the client, not the server, limited the figures.
    """

    stamps: str
    stamped_reads_share: float | None  # reads with a kernel timestamp
    shared_reads_share: float | None  # reads that held several events of a stream
    loop_lag: Lag
    start_lag: Lag  # start - the moment at which a request was due and had a slot
    late_starts: int  # start lags over 5 ms
    workers: int
    cpu_share: float | None  # of a core, by the busiest worker
    cpu_s: float  # of all workers
    connections: int
    retries: int  # requests sent again because a kept connection had been closed
    clock_steps: int
    limited_by_client: bool
    warnings: tuple[str, ...]


def trust(workers: Sequence[WorkerHealth], figures: Metrics) -> Trust:
    """The verdict on one run."""
    reads, stamped = sum(w.reads for w in workers), sum(w.stamped_reads for w in workers)
    loop_lag = Lag.of([lag for w in workers for lag in w.loop_lags_ns])
    starts = [lag for w in workers for lag in w.start_lags_ns]
    start_lag = Lag.of(starts)
    has_kernel_stamps = reads > 0 and stamped > reads / 2
    cpu_share = max((w.cpu_s / w.wall_s for w in workers if w.wall_s > 0), default=None)
    steps = sum(w.clock_steps for w in workers)
    limits = _limits(figures, loop_lag, start_lag, cpu_share, has_kernel_stamps)
    return Trust(
        stamps=KERNEL_STAMPS if has_kernel_stamps else USER_STAMPS,
        stamped_reads_share=stamped / reads if reads else None,
        shared_reads_share=figures.shared_reads_share,
        loop_lag=loop_lag,
        start_lag=start_lag,
        late_starts=sum(lag > LATE_NS for lag in starts),
        workers=len(workers),
        cpu_share=cpu_share,
        cpu_s=sum(w.cpu_s for w in workers),
        connections=sum(w.connections for w in workers),
        retries=sum(w.retries for w in workers),
        clock_steps=steps,
        limited_by_client=bool(limits),
        warnings=(
            *(f"this result was limited by the client: {limit}" for limit in limits),
            *_gathered(figures, loop_lag),
            *_doubts(steps),
        ),
    )


def _limits(
    figures: Metrics,
    loop_lag: Lag,
    start_lag: Lag,
    cpu_share: float | None,
    has_kernel_stamps: bool,
) -> list[str]:
    """What limited the figures, each with its rule."""
    found = []
    allowed = max(TIMER_GRAIN_MS, LAG_SHARE * (figures.median_itl_ms or 0.0))
    is_late = loop_lag.p99_ms is not None and loop_lag.p99_ms > allowed
    if cpu_share is not None and cpu_share > BUSY_SHARE:
        found.append(
            f"a load worker used {cpu_share:.0%} of a core (rule: over {BUSY_SHARE:.0%});"
            " raise load_workers"
        )
    if is_late and not has_kernel_stamps:
        found.append(
            f"the event loop was {loop_lag.p99_ms:.1f} ms late at p99,"
            " and timestamps are taken in user space"
            f" (rule: over {LAG_SHARE:.0%} of the median ITL and {TIMER_GRAIN_MS:g} ms)"
        )
    if _is_merged_here(figures, loop_lag):
        found.append(
            f"{figures.shared_reads_share:.1%} of reads held several events of a stream while the"
            " event loop was"
            f" {loop_lag.p99_ms:.1f} ms late at p99: the gaps between those events are lost"
            f" (rule: over {BLURRED_SHARE:.0%})"
        )
    if start_lag.p99_ms is not None and figures.median_ttft_ms is not None:
        allowed = max(TIMER_GRAIN_MS, LAG_SHARE * figures.median_ttft_ms)
        if start_lag.p99_ms > allowed:
            found.append(
                f"requests started up to {start_lag.p99_ms:.1f} ms late at p99"
                f" (rule: over {LAG_SHARE:.0%} of the median TTFT and {TIMER_GRAIN_MS:g} ms)"
            )
    return found


def _is_merged_here(figures: Metrics, loop_lag: Lag) -> bool:
    """Whether reads hold several events because the client was late: by at least half the time
    between two tokens."""
    late_ms = loop_lag.p99_ms or 0.0
    return (
        (figures.shared_reads_share or 0.0) > BLURRED_SHARE
        and not _is_in_pieces(figures)
        and late_ms > max(TIMER_GRAIN_MS, (figures.mean_itl_ms or 0.0) / 2)
    )


def _is_in_pieces(figures: Metrics) -> bool:
    return figures.one_piece_answers > BLURRED_SHARE * figures.completed


def _gathered(figures: Metrics, loop_lag: Lag) -> list[str]:
    """What shows that events were held back before they reached the client."""
    cause = "something between the server and the client buffers the stream"
    if _is_in_pieces(figures):
        return [
            f"{figures.one_piece_answers} of {figures.completed} answers came in one piece, and so"
            f" have no TPOT and no ITL: {cause}, or the server sends it whole"
            f" (rule: over {BLURRED_SHARE:.0%})"
        ]
    shared = figures.shared_reads_share or 0.0
    if shared <= BLURRED_SHARE or _is_merged_here(figures, loop_lag):
        return []
    return [
        f"{shared:.1%} of reads held several events of a stream, so the gaps between those are"
        f" lost: {cause}, or the server sends them within 0.2 ms"
        f" (rule: over {BLURRED_SHARE:.0%})"
    ]


def _doubts(clock_steps: int) -> list[str]:
    """What makes times wrong without being the client's fault."""
    if not clock_steps:
        return []
    times = "once" if clock_steps == 1 else f"{clock_steps} times"
    return [
        f"the wall clock jumped {times} during the run;"
        " kernel timestamps near a jump are off by its size"
    ]
