"""The steps of a backend's gate logs, one row each, in bounded memory: what the step model is
fitted to, what placements are tried on, and what is drawn of the router over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from core.errors import GateLogError, NoDataError
from core.experiment import dose
from core.routing import folder as gate_folder
from core.routing import steps
from core.routing.folder import GateFolder
from core.routing.gatelog import GateLog
from core.routing.meter import WARMUP
from core.rundir.selection import ALL, Selection
from core.stats.arrays import Floats

MAX_STEPS = 1 << 16  # more are thinned evenly
MAX_LOADS = 1 << 22  # counts kept for placements

# Means over layers where a step has several; floor_squared is nan for one token, run the place in
# `labels`.
COLUMNS = (
    "start_ns",
    "duration_us",
    "tokens",
    "prefill_tokens",
    "requests",
    "extra",
    "mean_load",
    "cv",
    "floor_squared",
    "run",
)


@dataclass(frozen=True, slots=True)
class StepSample:
    """`rows` [steps, COLUMNS] in order of time; `loads` [decode steps, layers, experts]; `ranks`:
    EP ranks, or 1.

    `labels`: the run of each start of the server; `counts[i]` [layers, experts]: the load of the
    whole run i; `placed`, `layer_numbers`: as in `GateLog`.
    """

    rows: Floats
    loads: Floats
    ranks: int
    labels: tuple[str, ...] = ()
    counts: tuple[Floats, ...] = ()
    placed: str = ""
    layer_numbers: tuple[int, ...] = ()

    @property
    def unit(self) -> str:
        return "rank" if self.ranks > 1 else "expert"

    def __getitem__(self, name: str) -> Floats:
        return np.asarray(self.rows[:, COLUMNS.index(name)])

    def of_phase(self, phase: str) -> StepSample:
        """The steps of "decode" (without prompt tokens) or "prefill" (with)."""
        return self._where((self["prefill_tokens"] > 0) == (phase == "prefill"))

    def of_run(self, label: str) -> StepSample:
        """The steps of one run; of its last start, where it was begun anew. NoDataError where there
        is none."""
        last = max((i for i, known in enumerate(self.labels) if known == label), default=-1)
        if last < 0:
            raise NoDataError(
                f"no step of {label} in the gate log; there are {', '.join(self.labels) or 'none'}"
            )
        whole = self._where(self["run"] == last)
        return replace(whole, labels=(label,), counts=(self.counts[last],))

    def _where(self, mask: np.typing.NDArray[np.bool_]) -> StepSample:
        return replace(self, rows=self.rows[mask])


def of_backend(run_dir: Path, backend: str, chosen: Selection = ALL) -> StepSample:
    """All that a backend's servers logged of the chosen datasets. GateLogError as
    `GateFolder.read`."""
    return read(gate_folder.starts(run_dir / backend), chosen)


def of_backends(
    run_dir: Path, backends: Sequence[str], chosen: Selection = ALL
) -> tuple[dict[str, StepSample], list[str]]:
    """Every backend whose logs can be read, and why the others cannot."""
    samples: dict[str, StepSample] = {}
    problems: list[str] = []
    for name in backends:
        try:
            samples[name] = of_backend(run_dir, name, chosen)
        except (GateLogError, OSError) as error:
            problems.append(f"{name}: its gate logs are not readable: {error}")
    return samples, problems


def read(folders: Sequence[Path], chosen: Selection = ALL) -> StepSample:
    """Steps that are the own of one run of the chosen datasets, naturally routed; a folder a
    server start.

    GateLogError as `GateFolder.read`.
    """
    reading = _Reading(chosen)
    for folder in folders:
        reading.begin()
        for part in GateFolder(folder).blocks():
            reading.add(part)
    return reading.sample()


@dataclass(slots=True)
class _Reading:
    """What has been read so far; evenly thinned where it would grow without bound."""

    chosen: Selection
    rows: list[Floats] = field(default_factory=list)
    loads: list[Floats] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    counts: list[Floats] = field(default_factory=list)
    start: dict[str, int] = field(
        default_factory=dict
    )  # label → its run in this start of the server
    ranks: int = 1
    placed: str = ""
    layer_numbers: tuple[int, ...] = ()
    seen: int = 0
    stride: int = 1
    loads_stride: int = 1

    def begin(self) -> None:
        self.start = {}

    def add(self, part: GateLog) -> None:
        self.ranks, self.placed = max(part.ranks, 1), part.placed
        self.layer_numbers = part.layer_numbers
        place = np.arange(self.seen, self.seen + len(part.tokens))
        self.seen += len(place)
        rows = self._rows(part)
        own = rows[:, -1] >= 0
        self.rows.append(rows[own & (place % self.stride == 0)])
        decode = own & (part.columns["prefill_tokens"] == 0)
        self.loads.append(part.loads[decode & (place % self.loads_stride == 0)].astype(np.float64))
        while sum(map(len, self.rows)) > MAX_STEPS:
            self.rows, self.stride = [np.concatenate(self.rows)[::2]], self.stride * 2
        while sum(a.size for a in self.loads) > MAX_LOADS:
            self.loads, self.loads_stride = [np.concatenate(self.loads)[::2]], self.loads_stride * 2

    def sample(self) -> StepSample:
        if not self.rows:
            return StepSample(np.zeros((0, len(COLUMNS))), np.zeros((0, 1, 1)), self.ranks)
        rows, loads = np.concatenate(self.rows), np.concatenate(self.loads)
        return StepSample(
            rows,
            loads,
            self.ranks,
            tuple(self.labels),
            tuple(self.counts),
            self.placed,
            self.layer_numbers,
        )

    def _rows(self, log: GateLog) -> Floats:
        """[steps, COLUMNS]; run -1 where a step is no run's own. Adds up the runs' counts."""
        natural = {
            s: n for s, n in log.segments.items() if s not in ("", WARMUP) and not dose.of_label(s)
        }
        own = {
            label: (n == log.tokens) & (n > 0)
            for label, n in natural.items()
            if self.chosen.has(label)
        }
        runs = {self._run(label, log): mask for label, mask in own.items() if mask.any()}
        picks = np.column_stack([np.zeros((len(log.tokens), 0)), *runs.values()]).astype(np.float64)
        figures, sums = steps.measure(
            log.loads, log.tokens, log.top_k, log.placement, picks, log.by_rank
        )
        run = np.full(len(log.tokens), -1.0)
        for (place, mask), counts in zip(runs.items(), sums, strict=True):
            run[mask] = place
            self.counts[place] += counts
        units = log.ranks or log.loads.shape[2]
        layers, supported = (
            np.maximum(figures.layers, 1),
            np.where(figures.supported > 0, figures.supported, np.nan),
        )
        extra = figures.rank_extra if log.ranks else figures.expert_extra
        c = log.columns
        return np.column_stack(
            [
                c["start_ns"],
                c["duration_ns"] / 1e3,
                log.tokens,
                c["prefill_tokens"],
                c["requests"],
                extra / layers,
                log.tokens * log.top_k / units,
                figures.cv / layers,
                figures.floor_squared / supported,
                run,
            ]
        )

    def _run(self, label: str, log: GateLog) -> int:
        """The place of a run; a new one where this start of the server meets it for the first
        time."""
        if label not in self.start:
            self.start[label] = len(self.labels)
            self.labels.append(label)
            self.counts.append(np.zeros(log.loads.shape[1:]))
        return self.start[label]
