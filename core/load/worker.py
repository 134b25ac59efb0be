"""A load worker: a process that sends its share of the requests and stamps the answers, and does
nothing else.

Run as `python -m core.load.worker`, with core.load.pipe's frames on stdin and stdout. The worker
ends when stdin ends, as it does when the parent dies. Requests are built and connections opened
before the start; from then on the garbage collector is off.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import sys
import time
import traceback
from array import array
from collections import deque
from functools import partial

import httpx

from core.load import pipe
from core.load.clock import now
from core.load.connection import Exchange
from core.load.payload import MAX_ERROR_TEXT
from core.load.pipe import Advanced, Done, Finished, Go, Job, Ready, Row, Stop, Up
from core.load.record import Progress, RequestRecord, WorkerHealth
from core.load.stream import TokenStream
from core.load.transport import Transport, origin_of, post_bytes
from core.load.wire import Times

TICK_S = 0.01
PROGRESS_S = 1.0
GAPS = 512  # gaps between tokens in a progress report, at most (but one of each request)
GAPS_OF_ONE = 8
MAX_ERROR_BYTES = 1 << 16
# The second is the default of servers that do not set a type.
END_GRACE_S = 0.002  # for the end of an answer's body, which usually comes with its last event
LINGER_NS = 1_000_000_000  # for the end of the body of an answer that is done
STREAM_TYPES = ("text/event-stream", "text/plain")
STOPPED = "cancelled: the load was stopped"


class Request:
    """One request."""

    __slots__ = ("due", "reported", "row", "start", "stream", "task", "times", "wire")

    def __init__(self, row: Row, wire: bytes, max_tokens: int) -> None:
        self.row, self.wire = row, wire
        self.stream = TokenStream(max_tokens)
        self.times = Times()
        self.due = self.start = 0
        self.reported = 0  # token events that the progress reports cover
        self.task: asyncio.Task[None] | None = None

    def done(self, error: str) -> Done:
        """The record of the request, which has ended."""
        stream = self.stream
        tokens = stream.event_tokens()
        bare = RequestRecord(
            index=self.row.index,
            prompt_id=self.row.prompt_id,
            t_due_ns=self.due,
            t_start_ns=self.start,
            t_sent_ns=self.times.sent,
            t_done_ns=now(),
            t_first_byte_ns=self.times.first_byte,
            prompt_tokens=stream.prompt_tokens,
            output_tokens=stream.output_tokens,
            visible_tokens=stream.visible_tokens,
            output_tokens_from="usage" if stream.completion_tokens else "events",
            text="".join(stream.texts),
            error=error[:MAX_ERROR_TEXT],
        )
        return Done(bare, stream.stamps.tobytes(), tokens.tobytes())


class Worker:
    """One job, from Ready to Finished."""

    def __init__(self, job: Job, tell: asyncio.WriteTransport) -> None:
        self._job, self._pipe = job, tell
        self._transport = Transport(max_answer_bytes=job.max_answer_bytes)
        self._slots = asyncio.Semaphore(job.concurrency)
        self._freed = deque([0] * job.concurrency)  # the time at which each free slot became free
        self._active: set[Request] = set()
        self._lingering: list[tuple[Exchange, int]] = []  # done before their body is, since (ns)
        self._waiting: list[Request] = []
        self._sent = self._first_tokens = self._tokens = self._done = self._errors = 0
        self._news = 0  # 1: the load's first token was reported, 2: its first gap too
        self._ttfts: list[int] = []  # both since the last progress report
        self._gaps: list[int] = []
        # Frames wait for the tick: the parent is woken once a tick, not once a request.
        self._unsent: list[bytes] = []
        self._loop_lags, self._start_lags = array("q"), array("q")

    async def prepare(self) -> None:
        """Build every request and open connections. If the server is not there, the requests report
        it."""
        url = httpx.URL(self._job.url)
        self._origin = origin_of(url)
        wire = post_bytes(url, self._job.headers)
        for row in reversed(self._job.rows):
            self._waiting.append(Request(row, wire(row.request_id, row.body), self._job.max_tokens))
        with contextlib.suppress(httpx.TransportError):
            await self._transport.open(url, self._job.connections)
        gc.collect()
        gc.freeze()
        gc.disable()
        self._say(Ready())

    async def run(self, t0: int) -> None:
        """Send each request when it is due; return when all have ended. Cancel it to stop early."""
        wall, cpu = now(), time.process_time()
        watch = asyncio.ensure_future(self._watch())
        try:
            while self._waiting:
                await self._send_next(t0)
            await asyncio.gather(*(r.task for r in self._active if r.task))
        except asyncio.CancelledError:
            pass
        watch.cancel()
        await self._end(wall, cpu)

    async def _send_next(self, t0: int) -> None:
        request = self._waiting[-1]
        request.due = t0 + request.row.due_ns
        # A loop: uvloop's timers may be half a millisecond early.
        while (wait := request.due - now()) > 0:
            await asyncio.sleep(wait / 1e9)
        await self._slots.acquire()
        could_start = max(request.due, self._freed.popleft())
        if self._job.closed_loop:
            request.due = could_start
        request.start = now()
        self._start_lags.append(request.start - could_start)
        self._active.add(self._waiting.pop())
        request.task = asyncio.ensure_future(self._one(request))

    async def _one(self, request: Request) -> None:
        error = STOPPED
        try:
            error = await self._answer(request)
        except httpx.HTTPError as failure:
            error = f"{type(failure).__name__}: {failure}"
        except asyncio.CancelledError as cancelled:
            if not cancelled.args:  # not from _end_hopeless
                raise
            error = str(cancelled.args[0])
        finally:
            self._ended(request, error)

    async def _answer(self, request: Request) -> str:
        """Stream one answer; return what was wrong with it, "" if nothing."""
        stream = request.stream
        exchange = await self._transport.answered(self._origin, request.wire, request.times, {})
        try:
            if exchange.status != 200:
                text = await _text(exchange)
                if 300 <= exchange.status < 400 and (place := exchange.header(b"location")):
                    text = f"redirected to {place}; send requests there {text}".rstrip()
                return f"HTTP {exchange.status}: {text}"
            encoding = exchange.header(b"content-encoding")
            if encoding not in ("", "identity"):
                return f"content-encoding: {encoding} would blur the times"
            kind = exchange.header(b"content-type")
            if kind and not kind.lower().startswith(STREAM_TYPES):
                return f"content-type: {kind} is not an event stream: {await _text(exchange)}"
            stream.on_end = partial(exchange.settle, END_GRACE_S)
            await exchange.attach(stream.feed)
            return stream.closing_error()
        except httpx.RemoteProtocolError as failure:
            return stream.closing_error(f"stream cut: {failure}")
        except httpx.ReadError as failure:
            return stream.closing_error(f"{type(failure).__name__}: {failure}")
        finally:
            stream.on_end = None  # else the two hold each other, and no garbage is collected
            if stream.finished and not (stream.error or exchange.is_over):
                self._lingering.append((exchange, now()))
            else:
                self._transport.release(exchange, self._origin)

    def _ended(self, request: Request, error: str) -> None:
        done = request.done(error)
        self._active.discard(request)
        self._freed.append(done.bare.t_done_ns)
        self._slots.release()
        if request.times.sent or error != STOPPED:
            self._sent += 1
        if request.stream.stamps:
            self._first_tokens += 1
            self._note(request)
        self._tokens += request.stream.received
        if done.bare.ok:
            self._done += 1
        else:
            self._errors += 1
        self._unsent.append(pipe.frame(done))

    # --- beside the requests

    async def _watch(self) -> None:
        """Measure loop lag and clock offset and report ended requests, once a tick; end stalled
        requests and report progress, less often."""
        next_stall_check = next_progress = now()
        stall_check_s = min(1.0, self._job.stall_timeout_s / 4)
        while True:
            due = now() + int(TICK_S * 1e9)
            await asyncio.sleep(TICK_S)
            at = now()
            self._loop_lags.append(max(0, at - due))
            self._transport.clock.sample()
            self._tell()
            self._release_lingering(at)
            if at >= next_stall_check:
                next_stall_check = at + int(stall_check_s * 1e9)
                self._transport.poll(at - int(stall_check_s * 1e9))
                self._end_hopeless(at)
            if at >= next_progress or self._is_news():
                next_progress = at + int(PROGRESS_S * 1e9)
                self._say(Advanced(self._progress()))

    def _is_news(self) -> bool:
        """Whether the load's first token, or its first gap, has come: both are reported at once."""
        if self._news == 2:
            return False
        stamps = [request.stream.stamps for request in self._active if request.stream.stamps]
        has_gap = any(seen[-1] > seen[0] for seen in stamps)  # what was read at once shares a stamp
        known, self._news = self._news, max(self._news, bool(stamps) + has_gap)
        return self._news > known

    def _release_lingering(self, at: int) -> None:
        """Give back the connections whose body has ended; close those where it does not."""
        waiting, self._lingering = self._lingering, []
        for exchange, since in waiting:
            if exchange.is_over or at - since > LINGER_NS:
                self._transport.release(exchange, self._origin)
            else:
                self._lingering.append((exchange, since))

    def _end_hopeless(self, at: int) -> None:
        """End requests whose answer is wrong or has stalled."""
        limit = self._job.stall_timeout_s
        for request in self._active:
            if (wrong := request.stream.error or request.stream.more_than_asked()) and request.task:
                request.task.cancel(wrong)
                continue
            last = (
                request.stream.stamps[-1]
                if request.stream.stamps
                else request.times.sent or request.start
            )
            if at - last > limit * 1e9 and request.task:
                request.task.cancel(f"stalled: no token for {limit:g} s")

    def _note(self, request: Request) -> None:
        """Keep what arrived for a request since the last progress report: its first token, and its
        newest gaps. From the stamps that are there: nothing is done when a token arrives."""
        known, events = request.reported, len(request.stream.stamps)
        if events == known:
            return
        if not known:
            self._ttfts.append(request.stream.stamps[0] - request.times.sent)
        most = max(1, min(GAPS_OF_ONE, GAPS // max(1, len(self._active))))
        self._gaps += request.stream.gaps(max(known, events - most, 1))
        request.reported = events

    def _progress(self) -> Progress:
        live = self._active
        for request in live:
            self._note(request)
        ttfts, gaps = tuple(self._ttfts), tuple(self._gaps)
        self._ttfts.clear()
        self._gaps.clear()
        return Progress(
            sent=self._sent + sum(r.times.sent > 0 for r in live),
            first_tokens=self._first_tokens + sum(bool(r.stream.stamps) for r in live),
            output_tokens=self._tokens + sum(r.stream.received for r in live),
            done=self._done,
            errors=self._errors,
            ttfts_ns=ttfts,
            gaps_ns=gaps,
        )

    async def _end(self, wall: int, cpu: float) -> None:
        tasks = [r.task for r in self._active if r.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for request in list(self._active):  # cancelled before its first step
            self._ended(request, STOPPED)
        await self._transport.aclose()
        self._say(Advanced(self._progress()))
        clock = self._transport.clock
        health = WorkerHealth(
            reads=clock.reads,
            stamped_reads=clock.stamped_reads,
            loop_lags_ns=tuple(self._loop_lags),
            start_lags_ns=tuple(self._start_lags),
            cpu_s=time.process_time() - cpu,
            wall_s=(now() - wall) / 1e9,
            connections=self._transport.opened,
            retries=self._transport.retries,
            clock_steps=clock.steps,
        )
        self._say(Finished(health))

    def _say(self, message: Up) -> None:
        self._unsent.append(pipe.frame(message))
        self._tell()

    def _tell(self) -> None:
        """Write the waiting frames."""
        if self._unsent:
            self._pipe.write(b"".join(self._unsent))
            self._unsent.clear()


async def _text(exchange: Exchange) -> str:
    """The start of an error's body, not decompressed: compression was not requested."""
    body = b""
    while len(body) <= MAX_ERROR_BYTES and (piece := await exchange.next_piece()) is not None:
        body += piece
    return body.decode(errors="replace")[:MAX_ERROR_TEXT]


async def serve() -> None:
    """Take a job from stdin and run it; exit when stdin ends."""
    loop = asyncio.get_running_loop()
    down = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(down), sys.stdin)
    up, _ = await loop.connect_write_pipe(asyncio.Protocol, sys.stdout)
    running: asyncio.Future[None] | None = None
    worker: Worker | None = None
    while (data := await pipe.read_frame(down)) is not None:
        message = pipe.decode_down.decode(data)
        if isinstance(message, Job):
            worker = Worker(message, up)
            await worker.prepare()
        elif isinstance(message, Go) and worker:
            running = asyncio.ensure_future(worker.run(message.t0_ns))
            running.add_done_callback(_end_on_fault)
        elif isinstance(message, Stop) and running:
            running.cancel()
    os._exit(0)  # nobody is left to report to


def _end_on_fault(running: asyncio.Future[None]) -> None:
    """Report an error of our own: the parent reads it from stderr."""
    if not running.cancelled() and (fault := running.exception()):
        traceback.print_exception(fault)
        os._exit(1)


def raise_descriptor_limit() -> None:
    """Every stream needs a socket."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS refuses what it reports
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main() -> None:
    raise_descriptor_limit()
    try:
        import uvloop
    except ImportError:
        asyncio.run(serve())
    else:
        uvloop.run(serve())


if __name__ == "__main__":
    main()
