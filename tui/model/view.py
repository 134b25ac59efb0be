"""What panes draw: one immutable View per tick. A pane's own state is its cursor, filter and
order."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from core.experiment.state import RunState, Snapshot
from core.plots import palette
from tui.draw.theme import BACKENDS

if TYPE_CHECKING:
    from tui.model.client import Client
    from tui.model.loads import Load

Stage = Literal["reading", "not started", "running", "finished", "stopped", "engine gone", "failed"]


class Happened(Struct, frozen=True):
    """One line of the Events pane."""

    at: float
    text: str


class Price(Struct, frozen=True):
    """What a dataset's routing costs a decode step over a fair router's: in words, and in %;
    whether its interval leaves 0 out."""

    words: str
    share: float | None
    is_detected: bool


class View(Struct, frozen=True):
    """`shown`: id of the run that Live and Imbalance show; `pinned`: whether the user chose it."""

    snapshot: Snapshot = Snapshot()
    stage: Stage = "reading"
    now: float = 0.0
    run_dir: str = ""
    problem: str = ""
    shown: str = ""
    pinned: bool = False
    paused: bool = False
    hz: float = 2.0
    happened: tuple[Happened, ...] = ()
    load: Load | None = None
    client: Client | None = None  # of the run shown, once it has ended
    invalid: str = ""  # the rules that say that the figures are not what they are called
    prices: Mapping[str, Price] = MappingProxyType({})  # by backend/dataset

    @property
    def run(self) -> RunState | None:
        return self.snapshot.runs.get(self.shown)

    @property
    def running(self) -> str:
        """Id of the run in progress, or ""."""
        if self.stage != "running":
            return ""
        return next((i for i, r in self.snapshot.runs.items() if r.phase == "running"), "")

    @property
    def last_at(self) -> float:
        """Wall clock of the last known event."""
        happened = self.happened[-1].at if self.happened else 0.0
        sampled = self.snapshot.samples[-1].at if self.snapshot.samples else 0.0
        return max(self.snapshot.ended_at, happened, sampled)

    @property
    def backends(self) -> tuple[str, ...]:
        """Every backend of the queue and every server, in order of appearance."""
        return tuple(
            dict.fromkeys(
                [*(r.run.backend for r in self.snapshot.runs.values()), *self.snapshot.backends]
            )
        )

    def others(self, run: RunState) -> list[RunState]:
        """Finished runs of the same dataset and repeat at the other backends."""
        runs = self.snapshot.runs.values()
        return [
            r
            for r in runs
            if r.run.label == run.run.label and r.run.backend != run.run.backend and r.figures
        ]

    def role(self, backend: str) -> str:
        names = self.backends
        return BACKENDS[palette.places(names)[backend]] if backend in names else ""
