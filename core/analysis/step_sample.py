"""The steps of a backend's gate logs, one row each, in bounded memory: what the step model is
fitted to, what placements are tried on, and what is drawn of the router over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from core.analysis import step_work
from core.errors import GateLogError, NoDataError
from core.experiment import dose, plan
from core.recorder.gatescope_recorder.kernel import Kernel
from core.routing import folder as gate_folder
from core.routing import steps
from core.routing.folder import GateFolder
from core.routing.gatelog import GateLog
from core.routing.meter import WARMUP
from core.routing.price import Prices
from core.rundir.selection import ALL, Selection
from core.stats.arrays import Bools, Floats, Ints

MAX_STEPS = 1 << 16  # more are thinned evenly
MAX_LOADS = 1 << 22  # counts kept for placements
OPEN = 0.01

# Means over layers where a step has several, and sums over them in step_work's; floor_squared is
# nan for one token, `context` the tokens that attention reads, `run` the place in `labels`.
COLUMNS = (
    "start_ns",
    "duration_us",
    "tokens",
    "prefill_tokens",
    "requests",
    "context",
    *step_work.COLUMNS,
    "extra",
    "mean_load",
    "cv",
    "floor_squared",
    "run",
)


@dataclass(frozen=True, slots=True)
class StepSample:
    """`rows` [steps, COLUMNS] in order of time; `loads` [decode steps, layers, experts], and
    `loads_run` [decode steps]: the place in `labels` of each one's run; `ranks`: EP ranks, or 1.

    `labels`: the run of each start of the server; `counts[i]` [layers, experts]: the load of the
    whole run i; `placed`, `layer_numbers`: as in `GateLog`.
    """

    rows: Floats
    loads: Floats
    loads_run: Ints
    ranks: int
    labels: tuple[str, ...] = ()
    counts: tuple[Floats, ...] = ()
    placed: str = ""
    layer_numbers: tuple[int, ...] = ()
    kernel: Kernel | None = None
    top_k: int = 0
    placement: tuple[int, ...] = ()
    moved: bool = False

    @property
    def experts(self) -> int:
        return int(self.loads.shape[2])

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """BLOCK_M and BLOCK_N of the tilings in these steps, ascending."""
        sizes = map(int, np.unique(self["tokens"]))
        found = [self.kernel.tiling(size) for size in sizes] if self.kernel else []
        return sorted({(one.block_m, one.block_n) for one in found if one})

    @property
    def unit(self) -> str:
        return "rank" if self.ranks > 1 else "expert"

    @property
    def routed(self) -> list[int]:
        """The runs, by their places; of a dataset's repeats whose routing was identical the first
        alone: where answers are greedy, another is no further evidence of the router."""
        first: dict[tuple[str, bytes], int] = {}
        for place, (label, loads) in enumerate(zip(self.labels, self.counts, strict=True)):
            first.setdefault((plan.dataset_of(label), loads.tobytes()), place)
        return list(first.values())

    def __getitem__(self, name: str) -> Floats:
        return np.asarray(self.rows[:, COLUMNS.index(name)])

    def of_phase(self, phase: str) -> StepSample:
        """The steps of "decode" (without prompt tokens) or "prefill" (with)."""
        return self.where((self["prefill_tokens"] > 0) == (phase == "prefill"))

    @property
    def open(self) -> Bools:
        """[steps]: whether rows of padding, whose choices are in no log, may have added over `OPEN`
        to the active experts."""
        active = self["active"]
        return np.asarray(self["most_active"] - active > OPEN * active)

    def of_run(self, label: str) -> StepSample:
        """The steps of one run; of its last start, where it was begun anew. NoDataError where there
        is none."""
        last = max((i for i, known in enumerate(self.labels) if known == label), default=-1)
        if last < 0:
            raise NoDataError(
                f"no step of {label} in the gate log; there are {', '.join(self.labels) or 'none'}"
            )
        whole = self.where(self["run"] == last)
        return replace(whole, labels=(label,), counts=(self.counts[last],))

    def where(self, mask: np.typing.NDArray[np.bool_]) -> StepSample:
        """The steps that `mask` [steps] marks."""
        return replace(self, rows=self.rows[mask])


def of_backend(
    run_dir: Path,
    backend: str,
    chosen: Selection = ALL,
    prices: Prices | None = None,
    *,
    forced: bool = False,
) -> StepSample:
    """All that a backend's servers logged of the chosen datasets, as `read`. GateLogError as
    `GateFolder.read`."""
    return read(gate_folder.starts(run_dir / backend), chosen, prices, forced=forced)


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


def read(
    folders: Sequence[Path],
    chosen: Selection = ALL,
    prices: Prices | None = None,
    *,
    forced: bool = False,
) -> StepSample:
    """Steps that are the own of one run of the chosen datasets; a folder a server start. Naturally
    routed, or with `forced` those of forced routing too.

    GateLogError as `GateFolder.read`.
    """
    reading = _Reading(chosen, prices, forced)
    for folder in folders:
        reading.begin()
        for part in GateFolder(folder).blocks():
            reading.add(part)
    return reading.sample()


@dataclass(slots=True)
class _Context:
    """The tokens that the requests of a run hold in the cache: all so far, less those of requests
    that have ended, at the mean of the running ones. A log does not say whose tokens a step had."""

    tokens: float = 0.0
    requests: int = 0

    def read(self, own: GateLog) -> list[float]:
        """Of each of the run's next steps, the step's own tokens included."""
        found = []
        steps = zip(own.tokens.tolist(), own.columns["requests"].tolist(), strict=True)
        for tokens, requests in steps:
            if requests < self.requests:
                self.tokens *= requests / self.requests
            self.tokens, self.requests = self.tokens + tokens, requests
            found.append(self.tokens)
        return found


@dataclass(slots=True)
class _Reading:
    """What has been read so far; evenly thinned where it would grow without bound."""

    chosen: Selection
    prices: Prices | None
    forced: bool
    rows: list[Floats] = field(default_factory=list)
    loads: list[Floats] = field(default_factory=list)
    loads_run: list[Ints] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    counts: list[Floats] = field(default_factory=list)
    start: dict[str, int] = field(
        default_factory=dict
    )  # label → its run in this start of the server
    context: dict[int, _Context] = field(default_factory=dict)  # by run
    ranks: int = 1
    placed: str = ""
    layer_numbers: tuple[int, ...] = ()
    kernel: Kernel | None = None
    top_k: int = 0
    placement: tuple[int, ...] = ()
    moved: bool = False
    seen: int = 0
    stride: int = 1
    loads_stride: int = 1

    def begin(self) -> None:
        self.start = {}

    def add(self, part: GateLog) -> None:
        self.ranks, self.placed = max(part.ranks, 1), part.placed
        self.layer_numbers, self.kernel = part.layer_numbers, part.kernel
        self.top_k, self.placement, self.moved = part.top_k, part.placement, part.moved
        place = np.arange(self.seen, self.seen + len(part.tokens))
        self.seen += len(place)
        rows = self._rows(part)
        own = rows[:, -1] >= 0
        self.rows.append(rows[own & (place % self.stride == 0)])
        decode = own & (part.columns["prefill_tokens"] == 0)
        kept = decode & (place % self.loads_stride == 0)
        self.loads.append(part.loads[kept].astype(np.float64))
        self.loads_run.append(rows[kept, -1].astype(np.int64))
        while sum(map(len, self.rows)) > MAX_STEPS:
            self.rows, self.stride = [np.concatenate(self.rows)[::2]], self.stride * 2
        while sum(a.size for a in self.loads) > MAX_LOADS:
            self.loads, self.loads_stride = [np.concatenate(self.loads)[::2]], self.loads_stride * 2
            self.loads_run = [np.concatenate(self.loads_run)[::2]]

    def sample(self) -> StepSample:
        if not self.rows:
            none = np.zeros((0, 1, 1)), np.zeros(0, np.int64)
            return StepSample(np.zeros((0, len(COLUMNS))), *none, self.ranks)
        rows, loads = np.concatenate(self.rows), np.concatenate(self.loads)
        return StepSample(
            rows,
            loads,
            np.concatenate(self.loads_run),
            self.ranks,
            tuple(self.labels),
            tuple(self.counts),
            self.placed,
            self.layer_numbers,
            self.prices.kernel if self.prices else self.kernel,
            self.top_k,
            self.placement,
            self.moved,
        )

    def _rows(self, log: GateLog) -> Floats:
        """[steps, COLUMNS]; run -1 where a step is no run's own. Adds up the runs' counts."""
        own = {
            label: (n == log.tokens) & (n > 0)
            for label, n in log.segments.items()
            if label not in ("", WARMUP)
            and (self.forced or not dose.of_label(label))
            and self.chosen.has(label)
        }
        runs = {self._run(label, log): mask for label, mask in own.items() if mask.any()}
        picks = np.column_stack([np.zeros((len(log.tokens), 0)), *runs.values()]).astype(np.float64)
        figures, sums = steps.measure(
            log.loads, log.tokens, log.top_k, log.placement, picks, log.by_rank
        )
        run, context = np.full(len(log.tokens), -1.0), np.zeros(len(log.tokens))
        for (place, mask), counts in zip(runs.items(), sums, strict=True):
            run[mask] = place
            self.counts[place] += counts
            context[mask] = self.context.setdefault(place, _Context()).read(log.where(mask))
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
                context,
                *step_work.columns(log, self.prices, _padding(log, own)).T,
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


def _padding(log: GateLog, own: Mapping[str, Bools]) -> Ints:
    """[steps]: rows beyond a step's tokens that route as they like. Forced steps have none: their
    padding repeats their own rows (on an H200 it woke no expert in 89 runs)."""
    if log.kernel is None or not log.kernel.graphs:
        return np.zeros(len(log.tokens), np.int64)
    rows = np.array([log.kernel.padding(int(tokens)) for tokens in log.tokens], np.int64)
    for label, mask in own.items():
        if dose.of_label(label):
            rows[mask] = 0
    return rows
