"""Checks the gate log of a run against the recorded loads that it was to replay, and counts how its
steps were made of recorded ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct

from core.experiment.dose import Replay
from core.recorder.gatescope_recorder import replay
from core.recorder.gatescope_recorder.order import Order
from core.recorder.gatescope_recorder.replay import Player, Track, phase_of
from core.routing.forced import SLACK, mixed, mixing
from core.stats.arrays import Floats, Ints

if TYPE_CHECKING:
    from core.routing.gatelog import GateLog


class Steps(Struct, frozen=True, kw_only=True):
    """How the steps of one phase were made. `exact`: of the recorded step's own number of tokens,
    and with its loads, count for count; `added`: of several recorded steps, the last one thinned;
    `thinned`: of a part of one; `natural`: not forced, since the log has no step of this phase;
    `unproven`: only the loads over the run were compared."""

    exact: int = 0
    added: int = 0
    thinned: int = 0
    natural: int = 0
    unproven: int = 0


class Replayed(Struct, frozen=True, kw_only=True):
    """What a run replayed: the recorded run `source`, the first `layers` of its `recorded_layers`
    layers."""

    source: str
    layers: int
    recorded_layers: int
    decode: Steps = Steps()
    prefill: Steps = Steps()

    def in_words(self) -> str:
        """`decode: 90 steps exact, 2 thinned; prefill: 3 natural`."""
        phases = (("decode", self.decode), ("prefill", self.prefill))
        found = {name: _in_words(steps) for name, steps in phases}
        return "; ".join(f"{name}: {text}" for name, text in found.items() if text)


def _in_words(steps: Steps) -> str:
    made = ((getattr(steps, name), name) for name in Steps.__struct_fields__)
    return ", ".join(f"{count} {name}" for count, name in made if count)


@dataclass(slots=True)
class _Sums:
    """Loads [layers, experts] over the steps of a phase that were forced: as recorded in this run,
    and as the log has them for as many tokens."""

    got: Floats
    due: Floats
    tokens: int = 0
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(Steps.__struct_fields__, 0)
    )


class ReplayCheck:
    """Checks the gate log of one run, part by part. A step's loads follow from the recorded ones,
    the seed and its tokens, so each is computed again and compared, count for count. Of
    data-parallel ranks, whose shares the merged log does not show, only whole recorded steps and
    the sums over the run can be; behind a step that the log lost, nothing."""

    def __init__(self, asked: Replay, label: str, order: Order) -> None:
        self._asked, self._label, self._order = asked, label, order
        self._mixed = self._wrong = 0
        self._player: Player | None = None
        self._recorded_layers = 0
        self._sums: dict[str, _Sums] = {}
        self._last: int | None = None  # index of the run's step before; None: not known in full
        self._is_whole = True

    def add(self, part: GateLog) -> None:
        """Take in the next part of the log."""
        own = part.segments.get(self._label)
        if own is None:
            return
        self._mixed += mixed(part, own, self._label)
        self._player = self._player or self._started(part)
        for place in np.flatnonzero((own == part.tokens) & (own > 0)).tolist():
            self._step(self._player, part, place)

    def wrong(self) -> str:
        """As `forced.Check.wrong`."""
        if self._mixed:
            return mixing(self._mixed)
        if self._player is None:
            return f"{self._asked} is not confirmed: the gate log holds no step of this run"
        if self._wrong:
            return f"requested {self._asked}; {self._wrong} steps do not have the recorded loads"
        for phase, sums in self._sums.items():
            if (far := _distance(sums)) > SLACK + 3 * _noise(sums):
                return (
                    f"requested {self._asked}; the loads of its {phase} steps are a CV of {far:.3f}"
                    " away from the recorded ones: routing was not replayed"
                )
        return ""

    @property
    def replayed(self) -> Replayed | None:
        """How the run's steps were made; None before its first."""
        if self._player is None:
            return None
        counts = {phase: Steps(**sums.counts) for phase, sums in self._sums.items()}
        return Replayed(
            source=self._asked.source,
            layers=self._player.track.layers,
            recorded_layers=self._recorded_layers,
            **counts,
        )

    def _started(self, part: GateLog) -> Player:
        layers, experts = part.loads.shape[1:]
        track = Track(self._order, self._asked.source, part.top_k, layers)
        self._recorded_layers = next(iter(track.loads.values())).shape[1]
        self._sums = {
            phase: _Sums(np.zeros((layers, experts)), np.zeros((layers, experts)))
            for phase in replay.PHASES
        }
        return Player(track)

    def _step(self, player: Player, part: GateLog, place: int) -> None:
        index, tokens = int(part.columns["index"][place]), int(part.tokens[place])
        if self._last is not None and index != self._last + 1:
            self._is_whole = False
        self._last = index
        phase = phase_of(int(part.columns["prefill_tokens"][place]))
        sums, loads, track = self._sums[phase], part.loads[place], player.track
        if not track.steps(phase):
            sums.counts["natural"] += 1
            return
        if not self._is_whole:
            sums.counts["unproven"] += 1
            return
        if part.dp_size > 1:
            _compare_shares(sums, track, phase, index, tokens, loads)
            return
        before = player.decode if phase == "decode" else player.prefill
        ids = player.next(phase, tokens, index)
        assert ids is not None
        due = _loads(ids, part.loads.shape[2])
        own = track.tokens(phase, before)
        how = "exact" if own == tokens else "added" if own < tokens else "thinned"
        sums.counts[how] += 1
        self._wrong += not np.array_equal(due, loads)
        _sum_up(sums, loads, due, tokens)


def _compare_shares(
    sums: _Sums, track: Track, phase: str, index: int, tokens: int, loads: Ints
) -> None:
    """A step of data-parallel ranks, which each had tokens of the recorded step at its index."""
    at = track.loads[phase][index % track.steps(phase), : track.layers]
    sums.counts["exact" if np.array_equal(at, loads) else "unproven"] += 1
    _sum_up(sums, loads, at * np.float64(tokens / track.tokens(phase, index)), tokens)


def _loads(ids: replay.Ids, experts: int) -> Ints:
    """[layers, experts] of choices [layers, tokens, top_k]."""
    return np.stack([np.bincount(layer.ravel(), minlength=experts) for layer in ids])


def _sum_up(sums: _Sums, got: Ints, due: Ints | Floats, tokens: int) -> None:
    sums.got += got
    sums.due += due
    sums.tokens += tokens


def _distance(sums: _Sums) -> float:
    """Between the two sums of loads, as a CV over experts; its root mean square over layers."""
    if not sums.tokens:
        return 0.0
    return float(np.sqrt(np.mean((sums.got - sums.due) ** 2))) / float(sums.due.mean())


def _noise(sums: _Sums) -> float:
    """The CV that chance alone shows between as many tokens."""
    if not sums.tokens:
        return 0.0
    choices, experts = sums.due[0].sum(), sums.due.shape[1]
    return float(np.sqrt((experts * sums.tokens / choices - 1) / sums.tokens))
