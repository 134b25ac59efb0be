"""Records one worker's steps: the engine's thread puts them into a ring, a second thread writes the
gate log."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .capture import Capture
from .clock import Clock
from .gatelog import GateLogWriter, Header, Step
from .limits import Limits
from .requests import Batch, Requests
from .ring import Ring, Slot

SLOTS = 512
POLL_S = 0.02
FLUSH_IDLE_S = 0.1
IDLE = Batch(0, 0, 0, {})

log = logging.getLogger("vllm.gatescope_recorder")


@dataclass(frozen=True, slots=True)
class Pending:
    """A step that has been launched. `scheduled`: vLLM's SchedulerOutput; None for a dummy
    batch."""

    index: int
    scheduled: Any
    slot: Slot | None
    at_ns: int


class Recorder:
    """Writes the forward passes of one worker into its gate log, from `start` on: all, or one in
    `header.sample`. On the engine's thread it never waits."""

    def __init__(
        self, path: Path, header: Header, capture: Capture, limits: Limits | None = None
    ) -> None:
        self.capture, self._sample = capture, header.sample
        # called by the writer's thread with the next step's index
        self.each_second: Callable[[int], None] = lambda index: None
        self.failed: Callable[[str], None] = lambda reason: None  # recording has stopped, and why
        self.dropped = self.idle = 0
        self.is_on = False
        cuda = capture.ids.device.type == "cuda"
        self._device = capture.ids.device if cuda else None
        self._ring = Ring(SLOTS, header.layers, header.experts, cuda)
        self._writer = GateLogWriter(path, header, limits)
        self._queue: deque[Pending] = deque()
        self._requests, self._clock = Requests(), Clock()
        self.vocabulary = 0  # the model's; 0: not known
        self._empty = np.zeros((header.layers, header.experts), np.int32)
        self._index = 0
        self._layer_names = header.layer_names or tuple(f"layer {n}" for n in range(header.layers))
        self._silent: set[str] = set()  # layers whose router left out a row
        self._noted = (0, 0, 0)  # steps, dropped, idle: as last written beside the log
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write, name="gatescope-recorder", daemon=True)

    def start(self) -> None:
        """After the warm-up: clear what it wrote, and record from here on."""
        slot = self._ring.take()
        assert slot is not None
        self.capture.histogram(slot.counts, self.capture.ids.shape[1])
        slot.start()
        slot.end()
        slot.copied()
        if self._device is not None:
            torch.cuda.synchronize(self._device)
        self._ring.give(slot)
        self.capture.warming_up = False
        self._thread.start()
        self.is_on = True

    @property
    def path(self) -> Path:
        """The file that is being written."""
        return self._writer.parts.path

    # --- the engine's thread ---

    @property
    def _is_chosen(self) -> bool:
        """Whether the next forward pass is one to record: the same one on every rank."""
        return self._index % self._sample == 0

    def begin(self, scheduled: Any) -> Slot | None:
        """Before a forward pass."""
        tokens = scheduled.total_num_scheduled_tokens
        if not self.is_on or not tokens or not self._is_chosen:
            return None
        slot = self._ring.take()
        if slot is not None:
            if self._sample > 1:
                self.capture.clear(tokens)
            slot.start()
        return slot

    def end(self, scheduled: Any, slot: Slot | None) -> None:
        """After the pass was launched: queue the count behind it on the device, and leave the rest
        to the writer."""
        if not self.is_on:
            return
        tokens = scheduled.total_num_scheduled_tokens
        if slot is not None:
            slot.end()
            self.capture.histogram(slot.counts, tokens)
            slot.copied()
        elif tokens and self._is_chosen:
            self.dropped += 1
        self._queue.append(Pending(self._index, scheduled, slot, 0))
        if tokens:
            self._index += 1

    def dummy(self) -> None:
        """After a dummy batch: it counts as a forward pass, because other ranks may have had tokens
        in it."""
        if self.is_on:
            if self._is_chosen:
                self._queue.append(Pending(self._index, None, None, time.perf_counter_ns()))
            self._index += 1

    def fail(self, error: BaseException) -> None:
        """Stop recording for good and log why; the server continues."""
        self.is_on = False
        reason = f"{type(error).__name__}: {error}"
        # of a full disk or a removed folder, one line says all
        trace = None if isinstance(error, OSError) else error
        log.error("gatescope recorder: disabled: %s", reason, exc_info=trace)
        self.failed(reason)
        self._writer.notes["disabled"] = reason
        self._stop.set()

    def close(self) -> None:
        """Write the remaining steps and close the log."""
        self.is_on = False
        self._stop.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=5.0)

    # --- the writer's thread ---

    def _write(self) -> None:
        try:
            if self._device is not None:
                torch.cuda.set_device(self._device)
            rest, looked_at = 0.0, 0.0
            while not self._stop.wait(POLL_S):
                if self.capture.error:
                    raise RuntimeError(f"a tap failed: {self.capture.error}")
                rest = 0.0 if self._drain() else rest + POLL_S
                if rest >= FLUSH_IDLE_S:
                    self._writer.flush()
                self._note()
                if time.monotonic() - looked_at >= 1.0:
                    looked_at = time.monotonic()
                    self.each_second(self._index)
            time.sleep(POLL_S)  # the last counts may still be arriving
            self._drain()
            self._writer.flush()
        except Exception as error:
            self.fail(error)
        finally:
            # on a full disk the log ends at a whole block, and the file beside it says why
            for last in (self._note, self._writer.write_totals, self._writer.close):
                with contextlib.suppress(OSError):
                    last()

    def _drain(self) -> int:
        """Write every step whose counts have arrived; returns their number."""
        done = 0
        while self._queue and ((slot := self._queue[0].slot) is None or slot.is_done):
            self._append(self._queue.popleft())
            done += 1
        return done

    def _append(self, pending: Pending) -> None:
        if pending.scheduled is None:
            self._writer.append(_step(pending.index, pending.at_ns, 0, IDLE, self._empty))
            self.idle += 1
            return
        if pending.slot is None:
            self._requests.read(pending.scheduled)
            return  # no tokens, or dropped
        # first of all: it looks at the host's clock
        start_ns, duration_ns, free = self._clock.read(pending.slot)
        batch = self._requests.read(pending.scheduled)
        whole = pending.slot.counts.numpy()
        counts = whole[:, :-1].copy()
        self._silent |= {self._layer_names[n] for n in np.flatnonzero(whole[:, -1])}
        if free is not None:
            self._ring.give(free)
        self._writer.append(_step(pending.index, start_ns, duration_ns, batch, counts))

    def _note(self) -> None:
        """Keep the file beside the log up to date, and log wrong sums once."""
        notes = self._writer.notes
        if self._writer.violations and "warned" not in notes:
            notes["warned"], notes["silent"] = True, sorted(self._silent)
            log.error(
                "gatescope recorder: the counts of a step do not add up to top_k x tokens;"
                " layers not seen: %s",
                ", ".join(sorted(self._silent)) or "none",
            )
        seen = (self._writer.steps, self.dropped, self.idle)
        if seen != self._noted:
            self._noted = seen
            notes.update(dropped=self.dropped, idle=self.idle)
            notes["prompts"] = self._requests.prompts.noted(self.vocabulary)
            self._writer.write_totals()


def _step(
    index: int, start_ns: int, duration_ns: int, batch: Batch, counts: np.ndarray[Any, Any]
) -> Step:
    return Step(
        index=index,
        start_ns=start_ns,
        duration_ns=duration_ns,
        tokens=batch.tokens,
        prefill_tokens=batch.prefill_tokens,
        decode_tokens=batch.tokens - batch.prefill_tokens,
        requests=batch.requests,
        segments=batch.segments,
        counts=counts,
    )


def write_refusal(path: Path, reason: str) -> None:
    """Write why there is no log, beside where it would have been."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(path.name + ".json").write_text(
        json.dumps({"closed": True, "refused": reason}) + "\n"
    )
