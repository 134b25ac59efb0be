"""The engine: a thread that schedules steps, runs the model, draws tokens, logs the step and
delivers the tokens."""

from __future__ import annotations

import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from time import perf_counter, perf_counter_ns

from core.builtin.batch import Batch, Span
from core.builtin.forcing import Forcing
from core.builtin.metrics import Metrics
from core.builtin.model import Model, Output
from core.builtin.pace import Pace
from core.builtin.parallel import RankDiedError
from core.builtin.sampler import draw
from core.builtin.scheduler import Chunk, Request, Scheduler, Sequence, Step
from core.builtin.tokenizer import EOS, PIECES
from core.builtin.weights import Ints
from core.recorder.gatescope_recorder import gatelog


@dataclass(frozen=True, slots=True)
class Delta:
    """What one step added to a sequence. The last has a finish reason: length, stop or abort."""

    sequence: Sequence
    text: str
    finish_reason: str | None = None
    stop_reason: str | None = None  # the stop string that ended it


class Engine:
    """Takes requests from any thread. `deliver` is called in the engine's thread, once per step.

    A step is in the gate log before its tokens are delivered. If nothing is left to run, the log is
    on disk before that, too: a client that has its last token can read all of it.
    """

    def __init__(
        self,
        model: Model,
        scheduler: Scheduler,
        log: gatelog.GateLogWriter | None,
        forcing: Forcing | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.model, self.scheduler, self.log, self.forcing = model, scheduler, log, forcing
        self.pace = pace
        self.metrics = Metrics()
        self.is_alive = False
        self._inbox: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._is_stopping = False
        self._death: Exception | None = None
        self._steps = 0
        self._thread = threading.Thread(target=self._live, name="engine")
        self._deliver: Callable[[list[Delta]], object] = _nowhere
        self._on_death: Callable[[], object] = _nothing

    def start(
        self, deliver: Callable[[list[Delta]], object], on_death: Callable[[], object]
    ) -> None:
        """Start the thread. `on_death` is called in it if a step fails."""
        self._deliver, self._on_death = deliver, on_death
        self.is_alive = True
        self._thread.start()

    def submit(self, request: Request) -> Sequence:
        """Queue a request; its deltas carry the returned sequence."""
        sequence = Sequence(request)
        self._inbox.put(lambda: self.scheduler.add(sequence))
        return sequence

    def abort(self, sequence: Sequence) -> None:
        """Drop a sequence whose client has disconnected."""
        self._inbox.put(lambda: self._forget(sequence))

    def fail(self, death: Exception) -> None:
        """End the engine with this error, at once even if nothing runs."""
        self._death = death
        self._inbox.put(_nothing)

    def stop(self) -> None:
        """End after the current step, without waiting for it. Unfinished sequences get a delta with
        the reason abort."""
        self._is_stopping = True
        self._inbox.put(_nothing)

    def join(self) -> None:
        """Wait for the end of the thread; the gate log is closed then."""
        self._thread.join()

    def _live(self) -> None:
        try:
            self._loop()
        except RankDiedError as death:
            print(f"error: {death}; the server ends", file=sys.stderr, flush=True)
            self._on_death()
        except Exception:
            traceback.print_exc()
            self._on_death()
        finally:
            self.is_alive = False
            self._abort_all()
            if self.log:
                self.log.close()

    def _loop(self) -> None:
        while not self._is_stopping:
            self._obey()
            if step := self.scheduler.schedule():
                self._run(step)

    def _obey(self) -> None:
        """Do what other threads requested; with nothing to run, wait for requests."""
        if self.scheduler.is_idle:
            self._rest()
            self._inbox.get()()
        while not self._inbox.empty():
            self._inbox.get()()
        if self._death:
            raise self._death

    def _rest(self) -> None:
        if self.log:
            self.log.flush()
        self._observe_load()

    def _run(self, step: Step) -> None:
        forced = self._forced(step)
        start_ns = perf_counter_ns()
        output = self.model.forward(Batch.of([_span(chunk) for chunk in step]), forced)
        if self.pace and self.log:
            placement = self.log.header.placement
            self.pace.hold(start_ns, self.pace.us(len(step), output.counts, placement))
        duration_ns = perf_counter_ns() - start_ns
        record = _record(self._steps, start_ns, duration_ns, step, output)
        self._steps += 1
        deltas = self._draw(step, output)
        if self.log:
            self.log.append(record)
        self._observe_load()
        if self.scheduler.is_idle:
            self._rest()
        self._deliver(deltas)

    def _forced(self, step: Step) -> Ints | None:
        if self.forcing is None:
            return None
        segments = [chunk.sequence.request.segment for chunk in step]
        tokens, prefill = sum(c.tokens for c in step), sum(c.prefill for c in step)
        return self.forcing.experts(segments, tokens, prefill)

    def _draw(self, step: Step, output: Output) -> list[Delta]:
        """Advance the step's sequences; those that are complete get a token."""
        due = [chunk.sequence for chunk in step if chunk.completes]
        for sequence, tokens in step:
            sequence.computed += tokens
        greedy = output.logits.argmax(axis=1).tolist()
        deltas = []
        for sequence, logits, token in zip(due, output.logits, greedy, strict=True):
            sampling = sequence.request.sampling
            if sampling.temperature > 0:
                token = draw(logits, sampling, sequence.random)
            sequence.tokens.append(token)
            self._observe_token(sequence)
            delta = take(sequence, token)
            if delta.finish_reason:
                self.scheduler.remove(sequence)
                self.metrics.finished[delta.finish_reason] += 1
                self.metrics.e2e_request_latency_s.observe(
                    sequence.last_token_s - sequence.arrived_s
                )
            deltas.append(delta)
        return deltas

    def _forget(self, sequence: Sequence) -> None:
        if self.scheduler.remove(sequence):
            self.metrics.finished["abort"] += 1

    def _abort_all(self) -> None:
        while not self._inbox.empty():
            self._inbox.get()()
        left = [*self.scheduler.running, *self.scheduler.waiting]
        self._deliver([Delta(sequence, "", "abort") for sequence in left])

    def _observe_token(self, sequence: Sequence) -> None:
        now, metrics = perf_counter(), self.metrics
        passed, sequence.last_token_s = now - sequence.last_token_s, now
        metrics.generation_tokens += 1
        if sequence.generated == 1:
            metrics.prompt_tokens += len(sequence.request.prompt)
            metrics.time_to_first_token_s.observe(passed)
        else:
            metrics.inter_token_latency_s.observe(passed)

    def _observe_load(self) -> None:
        running, cache = self.scheduler.running, self.model.cache
        self.metrics.running, self.metrics.waiting = len(running), len(self.scheduler.waiting)
        self.metrics.cache_usage = sum(s.computed for s in running) / (cache.slots * cache.length)


def take(sequence: Sequence, token: int) -> Delta:
    """The text that the sequence's newest token adds, and whether it is the last token."""
    sampling = sequence.request.sampling
    if token == EOS and not sampling.ignore_eos:
        return Delta(sequence, sequence.text[sequence.sent :], "stop")
    finish = "length" if sequence.generated >= sampling.max_tokens else None
    if not sampling.stop:
        return Delta(sequence, PIECES[token], finish)
    return _take_text(sequence, PIECES[token], finish)


def _take_text(sequence: Sequence, piece: str, finish: str | None) -> Delta:
    """With stop strings, text that may be the start of one is held back."""
    stops = sequence.request.sampling.stop
    sequence.text += piece
    found = [(at, stop) for stop in stops if (at := sequence.text.find(stop, sequence.sent)) >= 0]
    if found:
        at, stop = min(found)
        return Delta(sequence, sequence.text[sequence.sent : at], "stop", stop)
    held_back = 0 if finish else max(len(stop) for stop in stops) - 1
    start, sequence.sent = sequence.sent, max(sequence.sent, len(sequence.text) - held_back)
    return Delta(sequence, sequence.text[start : sequence.sent], finish)


def _span(chunk: Chunk) -> Span:
    sequence = chunk.sequence
    tokens = sequence.tokens[sequence.computed : sequence.computed + chunk.tokens]
    return Span(sequence.slot, sequence.computed, tokens, chunk.completes)


def _record(
    index: int, start_ns: int, duration_ns: int, step: Step, output: Output
) -> gatelog.Step:
    """The step as the gate log stores it. Call it before the step's sequences advance."""
    segments: Counter[str] = Counter()
    for chunk in step:
        segments[chunk.sequence.request.segment] += chunk.tokens
    tokens = sum(chunk.tokens for chunk in step)
    prefill = sum(chunk.prefill for chunk in step)
    return gatelog.Step(
        index=index,
        start_ns=start_ns,
        duration_ns=duration_ns,
        tokens=tokens,
        prefill_tokens=prefill,
        decode_tokens=tokens - prefill,
        requests=len(step),
        segments=segments,
        counts=output.counts,
    )


def _nowhere(deltas: list[Delta]) -> None:
    """Drop deltas, before the engine has started."""


def _nothing() -> None:
    """Only wake the engine."""
