"""What a run's routing may be forced to, so that skew is set and nothing else changes: a dose (a
target imbalance), or the recorded routing of another run.

`Dose.level` is the population CV over experts of the expected counts. The distribution itself is in
the recorder's package, since vLLM's workers need it too.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from core.recorder.gatescope_recorder import order

Pattern = Literal["hot-experts", "hot-rank", "spread", "rotating", "few-experts"]
NAME = "forced routing"
REPLAYED = "replayed routing"
EXAMPLE = "gatescope --dose 0,0.5,1 --pattern hot-rank"


class Dose(msgspec.Struct, frozen=True):
    """Routing forced to `level`, the target CV of expert load; `pattern` chooses the hot
    experts."""

    pattern: Pattern
    level: float

    @property
    def label(self) -> str:
        """`hot-rank~0.5`, which ends a run's label behind another `~`."""
        return f"{self.pattern}~{self.level:g}"

    def __str__(self) -> str:
        return f"{NAME}: {self.pattern}, CV {self.level:g}"


class Replay(msgspec.Struct, frozen=True):
    """Routing forced to the recorded loads of the run `source`, step after step."""

    source: str

    @property
    def label(self) -> str:
        """`replay~001`, which ends a run's label behind another `~`."""
        return f"{order.REPLAY}~{self.source}"

    def __str__(self) -> str:
        return f"{REPLAYED}: {self.source}"


def of_label(label: str) -> Dose | Replay | None:
    """The dose or replay of a run's label or its gate-log segment; None where its routing was
    natural."""
    found = order.dose_of(label)
    if not found:
        return None
    pattern, _, rest = found.partition("~")
    if pattern == order.REPLAY:
        return Replay(rest)
    return Dose(msgspec.convert(pattern, Pattern), float(rest))


def is_replay(label: str) -> bool:
    """Whether a run's label, or its id, names a replay."""
    return isinstance(of_label(label), Replay)
