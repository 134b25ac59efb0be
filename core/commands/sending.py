"""Sends the load of `gatescope bench`, until a signal ends it, and says how far it has come."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from core import terminal
from core.terminal import clock, printable

if TYPE_CHECKING:
    from core.load.client import Load
    from core.load.record import Progress, Records, RequestRecord

TELL_EVERY_S = 10.0
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def tell(text: str) -> None:
    """Print on stderr."""
    with contextlib.suppress(OSError):  # a reader that left must not cost the result
        print(terminal.fitted(printable(text)), file=sys.stderr)


@dataclass(frozen=True, slots=True)
class Taken:
    """The records of a load, and the signal that ended it early (0: none did)."""

    records: Records
    stopped_by: signal.Signals | Literal[0]


async def taken(load: Load, warmup_requests: int) -> Taken:
    """Send the warm-up, whose records are left out, and the load. After a signal: what there is."""
    from core.load import client
    from core.load.record import Records

    done: list[RequestRecord] = []
    async with _stoppable() as stops:
        try:
            _tell_limit(load)
            await _warm_up(load, warmup_requests)
            _tell_trace(load)
            records = await client.run(load, done.append, _progress(load))
            return Taken(records, 0)
        except asyncio.CancelledError:
            if not stops:
                raise
            return Taken(Records(sorted(done, key=lambda r: r.index)), stops[0])


@contextlib.asynccontextmanager
async def _stoppable() -> AsyncIterator[list[signal.Signals]]:
    """Meanwhile, a signal cancels this task and is added to the list; a second one ends the
    process. A signal that was ignored stays ignored."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    stops: list[signal.Signals] = []
    heard = [s for s in STOPPING if signal.getsignal(s) != signal.SIG_IGN]

    def stop(number: signal.Signals) -> None:
        assert task
        stops.append(number)
        for each in heard:
            loop.remove_signal_handler(each)
        task.cancel()

    for each in heard:
        loop.add_signal_handler(each, stop, each)
    try:
        yield stops
    finally:
        for each in heard:
            loop.remove_signal_handler(each)


async def _warm_up(load: Load, count: int) -> None:
    from dataclasses import replace

    from core.load import client

    if not count:
        return
    prompts = tuple(load.prompts[i % len(load.prompts)] for i in range(count))
    records = await client.run(
        replace(
            load,
            prompts=prompts,
            label="warmup",
            request_rate="inf",
            arrival="poisson",
            ramp_up_s=0.0,
        )
    )
    failed = [r.error for r in records if r.error]
    if failed:
        tell(f"warm-up: {len(failed)} of {count} requests failed, the first with: {failed[0]}")


def _tell_limit(load: Load) -> None:
    from core.load import client

    if not load.is_at_once and (words := client.too_few_files(load)):
        tell(f"{words} if requests pile up; then some wait, as with --max-concurrency")


def _tell_trace(load: Load) -> None:
    """A trace in the wrong unit takes a thousand times as long: say how long it takes."""
    from core.workload import trace

    if load.arrival == "trace":
        stamps = [p.timestamp for p in load.prompts if p.timestamp is not None]
        last = max(trace.replayed(stamps, load.trace_unit))
        tell(f"trace: the last of {len(stamps)} requests is due after {clock(last)}")


def _progress(load: Load) -> Callable[[Progress], None]:
    """Draws a bar on a terminal; elsewhere tells a line every ten seconds."""
    began = told_at = time.monotonic()

    def say(progress: Progress) -> None:
        nonlocal told_at
        if terminal.shows_bars():
            _show_bar(load, progress, time.monotonic() - began)
        elif time.monotonic() - told_at > TELL_EVERY_S:
            told_at = time.monotonic()
            ended = progress.done + progress.errors
            tell(
                f"{ended} of {len(load.prompts)} requests, {progress.output_tokens} tokens,"
                f" {progress.errors} errors"
            )

    return say


def _show_bar(load: Load, progress: Progress, took_s: float) -> None:
    """By tokens, unless the server decides how many there are."""
    ended, tokens = progress.done + progress.errors, progress.output_tokens
    failed = f"  {progress.errors} errors" if progress.errors else ""
    if load.asked_tokens is None:
        share, of = ended / len(load.prompts), f"{ended} of {len(load.prompts)} requests"
    else:
        due = max(load.asked_tokens * (len(load.prompts) - progress.errors), 1)
        share, of = tokens / due, f"{tokens:,} of {due:,} tokens"
    left = f"  ETA {clock(took_s * (1 - share) / share)}" if 0 < share <= 1 else ""
    terminal.bar(f"▶ {load.label}", share, f"{of}{failed}{left}")
