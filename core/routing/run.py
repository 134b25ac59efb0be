"""What the gate log shows of one run, summed up part by part while the log grows; the counts
themselves are not kept."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from msgspec import Meta, Struct

from core.experiment.dose import Dose, Replay
from core.recorder.gatescope_recorder.order import Order
from core.recorder.gatescope_recorder.replay import PHASES
from core.routing import forced, imbalance
from core.routing.gatelog import GateLog
from core.routing.imbalance import Imbalance
from core.routing.meter import Meter
from core.routing.repeats import Repeats
from core.routing.replayed import ReplayCheck, Replayed
from core.stats.arrays import Ints

# Steps' stamps against the host's clock, to which the recorder anchors a GPU's: far more than what
# remains (gatescope_recorder.clock), far less than what two machines' clocks differ by.
APART_NS = 50_000_000


class LongestStep(Struct, frozen=True):
    """The longest of a run's own steps; `tokens` of all ranks."""

    ms: Annotated[float, Meta(ge=0, le=1e12)]
    tokens: Annotated[int, Meta(ge=1, le=1 << 53)]


class RunRouting:
    """One run's figures so far. With an `order`, its routing is checked against the requested dose
    (target imbalance) or replay."""

    def __init__(
        self, label: str, asked: Dose | Replay | None = None, order: Order | None = None
    ) -> None:
        self.label, self.tokens = label, 0
        self.longest_step: LongestStep | None = None
        self._span: tuple[int, int] | None = None  # ns: start of its first step, end of its last
        self._meter = Meter()
        # of its own steps, by phase: starts and durations (ns), and their tokens in all
        self._steps: dict[str, list[Ints]] = {phase: [] for phase in PHASES}
        self.phase_tokens = dict.fromkeys(PHASES, 0)
        self._check = _check(asked, label, order) if order else None

    def add(self, part: GateLog) -> None:
        """Take in the next part of the log; it has no steps if it was read between two blocks."""
        if not len(part.tokens):
            return
        self._meter.add(part)
        own = part.segments.get(self.label)
        if own is None:
            return
        self.tokens += int(own.sum())
        alone, took = (own == part.tokens) & (own > 0), part.columns["duration_ns"]
        prompt, starts = part.columns["prefill_tokens"] > 0, part.columns["start_ns"]
        for phase, those in (("prefill", alone & prompt), ("decode", alone & ~prompt)):
            if those.any():
                self._steps[phase].append(np.stack([starts[those], took[those]]))
                self.phase_tokens[phase] += int(own[those].sum())
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

    def imbalance(self, prompts: Repeats | None = None) -> Imbalance:
        """The imbalance so far; `prompts`: how their tokens repeat. GateLogError if no step is the
        run's own."""
        return imbalance.of_meter(self._meter, self.label, prompts)

    def decode_step_ms(self) -> float | None:
        """Median duration, in ms, of the run's own steps without prompt tokens; None if there is no
        such step."""
        took = self.spans("decode")[1]
        return float(np.median(took)) / 1e6 if len(took) else None

    def spans(self, phase: str) -> Ints:
        """[2, steps]: starts and durations in ns of the run's own steps with prompt tokens
        ("prefill") or without ("decode"); their tokens are in `phase_tokens`."""
        return np.concatenate([np.zeros((2, 0), np.int64), *self._steps[phase]], axis=1)

    def is_one_clock(self, began_ns: int, last_token_ns: int) -> bool:
        """Whether the run's steps lie inside these two times, within APART_NS: else another
        machine's clock timed them, or there are none."""
        if not self._span:
            return False
        start, end = self._span
        return began_ns - APART_NS <= start and end <= last_token_ns + APART_NS

    def delivery_lag_ms(self, due: int, began_ns: int, last_token_ns: int) -> float | None:
        """Time from the end of the run's last step to the arrival of its last token, in ms. `due`:
        tokens of its answers.

        None unless exactly these tokens were seen: if some are missing, or a failed request's are
        among them, the last step seen is not the one that made the last token. None too if steps
        lie outside the two times: then another machine's clock timed them.
        """
        if not self._span or self.tokens != due or not self.is_one_clock(began_ns, last_token_ns):
            return None
        return (last_token_ns - self._span[1]) / 1e6

    def why_not_forced(self) -> str:
        """As `forced.Check.wrong`; empty too if nothing was to be forced."""
        return self._check.wrong() if self._check else ""

    @property
    def replayed(self) -> Replayed | None:
        """How the run's steps were made of recorded ones; None where it replays nothing."""
        return self._check.replayed if isinstance(self._check, ReplayCheck) else None


def _check(asked: Dose | Replay | None, label: str, order: Order) -> forced.Check | ReplayCheck:
    if isinstance(asked, Replay):
        return ReplayCheck(asked, label, order)
    return forced.Check(asked, label, order)
