"""The last minute and the last hour of a growing gate log, prefill and decode apart."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import numpy as np

from core.errors import GateLogError
from core.recorder.gatescope_recorder.gatelog import Header
from core.recorder.gatescope_recorder.parts import LOG
from core.routing import folder as gate_folder
from core.routing import layers, places, rank_nodes
from core.routing.folder import GateFolder
from core.routing.gatelog import GateLog
from core.routing.layers import Totals
from core.routing.recurrence import Recurrence

PHASES = ("prefill", "decode")  # steps with prompt tokens in them, and those without
MINUTE_S, HOUR_S = 60, 3600
SLICE_S = 20  # sums are kept by slices of so much: a window ends with one that is not over yet


class Windows:
    """Sums of the last hour, slice by slice. `seen`: steps, tokens and seconds of each phase since
    the first step."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[int, int, float]] = dict.fromkeys(PHASES, (0, 0, 0.0))
        self._slices: dict[str, dict[int, Totals]] = {phase: {} for phase in PHASES}
        self._recurrences: dict[str, Recurrence] = {}

    def add(self, log: GateLog, wall_ns: int) -> None:
        """Steps of a log. `wall_ns`: what their start by its clock is behind the wall clock's."""
        log = log.where(log.tokens > 0)
        at = (log.columns["start_ns"] + wall_ns) // (SLICE_S * 10**9)
        prompt = log.columns["prefill_tokens"] > 0
        for phase, own in zip(PHASES, (prompt, ~prompt), strict=True):
            steps, tokens, took_s = self.seen[phase]
            took_s += int(log.columns["duration_ns"][own].sum()) / 1e9
            self.seen[phase] = steps + int(own.sum()), tokens + int(log.tokens[own].sum()), took_s
            slices = self._slices[phase]
            shared = self._recurrences.setdefault(phase, Recurrence(*log.loads.shape[1:]))
            for number in np.unique(at[own]):
                found = slices.setdefault(int(number), Totals(recurrence=shared))
                found.add(log.where(own & (at == number)))

    def forget(self, now_s: float) -> None:
        """What no window reaches any more."""
        first = _first(now_s, HOUR_S)
        for slices in self._slices.values():
            for number in [n for n in slices if n < first]:
                del slices[number]

    def last(self, phase: str, seconds: int, now_s: float) -> Totals:
        """The sums of the last `seconds`, to within a slice."""
        first = _first(now_s, seconds)
        found = sorted(self._slices[phase].items())
        return layers.joined(totals for number, totals in found if number >= first)


def _first(now_s: float, seconds: int) -> int:
    """The first slice of a window that ends now."""
    return int(now_s) // SLICE_S - seconds // SLICE_S + 1


class Watched:
    """The newest log in a folder of `gatescope record`, a run directory, or a folder of gate
    logs; a later start of the server takes its place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.logs: Path | None = None
        self.header: Header | None = None
        self.nodes: tuple[str, ...] = ()  # of the expert-parallel ranks, where they are known
        self.windows = Windows()
        self.problem = ""  # why there is nothing, or no more, to see
        self.at_s = 0.0  # wall time of the last read, at which windows end
        self._reader: GateFolder | None = None

    def read(self, now_s: float | None = None) -> None:
        """Take in what was logged since the last read."""
        now_s = self.at_s = time.time() if now_s is None else now_s
        newest = newest_logs(self.folder)
        if newest is not None and newest != self.logs:
            self.logs, self.header, self.nodes = newest, None, ()
            self.windows, self._reader = Windows(), GateFolder(newest)
        if self._reader is None or self.logs is None:
            self.problem = f"{self.folder}: no gate log here yet"
            return
        self.header = self.header or gate_folder.header(self.logs)
        if self.header and not self.nodes:  # workers write as they start, one after the other
            self.nodes = rank_nodes.of_ranks(self.logs, self.header)
        problems = gate_folder.problems(self.logs)
        try:
            for part in self._reader.blocks():
                self._take(part, now_s)
        except (GateLogError, OSError) as error:
            problems = problems or [str(error)]
        self.problem = "; ".join(problems)
        self.windows.forget(now_s)

    def _take(self, part: GateLog, now_s: float) -> None:
        header = self.header
        assert header is not None  # a block was read
        wall_ns = header.wall_ns - header.monotonic_ns
        oldest = _first(now_s, HOUR_S) * SLICE_S * 10**9 - wall_ns
        self.windows.add(part.where(part.columns["start_ns"] >= oldest), wall_ns)


def newest_logs(folder: Path) -> Path | None:
    """The folder of gate logs, among `folder` and those in it, that was written to last."""
    written: dict[Path, float] = {}
    for place in places.all_in(folder):
        for file in place.glob(f"*{LOG}*"):
            with contextlib.suppress(FileNotFoundError):  # removed to make room
                written[place] = max(written.get(place, 0.0), file.stat().st_mtime)
    return max(written, key=written.__getitem__, default=None)
