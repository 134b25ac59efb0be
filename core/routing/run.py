"""What the gate log shows of one run, summed up part by part while it grows: the counts themselves
are not kept."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from msgspec import Meta, Struct

from core.experiment.dose import Dose
from core.recorder.gatescope_recorder.order import Order
from core.routing import forced, imbalance
from core.routing.gatelog import GateLog
from core.routing.imbalance import Imbalance
from core.routing.meter import Meter
from core.stats.arrays import Ints

DRIFT_NS = 500_000_000  # a GPU's clock against the host's: 13 ms an hour were seen


class LongestStep(Struct, frozen=True):
    """Of a run's own steps; `tokens` of all ranks."""

    ms: Annotated[float, Meta(ge=0, le=1e12)]
    tokens: Annotated[int, Meta(ge=1, le=1 << 53)]


class RunRouting:
    """`tokens` of the run that were seen so far. With an `order`, its routing is held against the
    dose asked for."""

    def __init__(self, label: str, asked: Dose | None = None, order: Order | None = None) -> None:
        self.label, self.tokens = label, 0
        self.longest_step: LongestStep | None = None
        self._span: tuple[int, int] | None = (
            None  # its first step's start and its last one's end, in ns
        )
        self._meter = Meter()
        self._decode_ns: list[Ints] = []  # durations of its steps without prompt tokens
        self._check = forced.Check(asked, label, order) if order else None

    def add(self, part: GateLog) -> None:
        """The next part of the log; one without steps is a look between two blocks."""
        if not len(part.tokens):
            return
        self._meter.add(part)
        own = part.segments.get(self.label)
        if own is None:
            return
        self.tokens += int(own.sum())
        alone, took = (own == part.tokens) & (own > 0), part.columns["duration_ns"]
        self._decode_ns.append(took[alone & (part.columns["prefill_tokens"] == 0)])
        self._note_longest(took[alone], own[alone])
        self._note_span(part.columns["start_ns"][own > 0], took[own > 0])
        if self._check:
            self._check.add(part)

    def _note_longest(self, took_ns: Ints, tokens: Ints) -> None:
        if not len(took_ns):
            return
        place = int(took_ns.argmax())
        step = LongestStep(float(took_ns[place]) / 1e6, int(tokens[place]))
        if self.longest_step is None or step.ms > self.longest_step.ms:
            self.longest_step = step

    def _note_span(self, starts: Ints, took_ns: Ints) -> None:
        if not len(starts):
            return
        start, end = int(starts.min()), int((starts + took_ns).max())
        before = self._span or (start, end)
        self._span = min(start, before[0]), max(end, before[1])

    def imbalance(self) -> Imbalance:
        """GateLogError where no step is the run's own."""
        return imbalance.of_meter(self._meter, self.label)

    def decode_step_ms(self) -> float | None:
        """Median duration, in ms, of the run's own steps that hold no prompt token; None of no such
        step."""
        took = np.concatenate(self._decode_ns) if self._decode_ns else np.zeros(0)
        return float(np.median(took)) / 1e6 if len(took) else None

    def delivery_lag_ms(self, due: int, began_ns: int, last_token_ns: int) -> float | None:
        """From the end of the run's last step to the arrival of its last token, in ms. `due`:
        tokens of its answers.

        None unless these tokens and no others were seen: the last step is another where some are
        missing, or a failed request's are among them. None too where steps lie outside the two
        times: another machine's clock timed them.
        """
        if not self._span or self.tokens != due:
            return None
        start, end = self._span
        is_one_clock = began_ns - DRIFT_NS <= start and end <= last_token_ns + DRIFT_NS
        return (last_token_ns - end) / 1e6 if is_one_clock else None

    def why_not_forced(self) -> str:
        """As `dose.Check.wrong`; empty too where nothing was to be forced."""
        return self._check.wrong() if self._check else ""
