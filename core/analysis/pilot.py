"""A pilot's run directory → how much starts and runs vary, and how long they take: what the next
experiment is planned from.

Logarithms of a metric are taken as dataset + start + noise of a run. The noise is what is left of
the runs after a least-squares fit of datasets and starts; datasets are fitted for each backend
where they ran more than once at it, else for both together. A restart's variance is that of the
starts' means, less what the noise of their runs accounts for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from core.experiment import events
from core.experiment.events import AnyEvent
from core.experiment.state import AROUND_A_LOAD_S
from core.stats import comparison, power, starts
from core.stats.arrays import Floats
from core.stats.starts import Side

ELSEWHERE = 0.013  # SD of a restart, where a pilot has one start of each backend
FEWER = (1, 2, 4)  # a design may take all datasets, or half, or a quarter
REPEATS = (1, 2, 4)
MIN_DATASETS = 4


@dataclass(frozen=True, slots=True)
class Pilot:
    """`restart`, `noise`: SDs of a start and of a run, as fractions; `restart_from`: starts of the
    pilot that the first rests on, 0 where it is taken from elsewhere. Seconds are of both backends
    together: a start of each, a run of each."""

    restart: float
    noise: float
    restart_from: int
    noise_from: int
    datasets: int
    start_s: float
    run_s: float


@dataclass(frozen=True, slots=True)
class Design:
    """`starts` of each backend, each of which runs `datasets`, `repeats` times."""

    starts: int
    datasets: int
    repeats: int
    hours: float


def of_sides(before: Side, after: Side, start_s: float, run_s: float) -> Pilot | None:
    """None where no run was repeated in any way, so that nothing tells noise from effect."""
    logs = [comparison.logarithms(side) for side in (before, after)]
    found = starts.means(*logs)
    left = _noise(logs) if found else None
    if found is None or left is None:
        return None
    noise, noise_from = left
    restart, restart_from = ELSEWHERE, 0
    if found.are_replicated:
        each = found.spread**2 / (2 if found.paired else 1)
        restart = math.sqrt(max(0.0, each - noise**2 / _runs_of_a_start(logs)))
        restart_from = len(found.before) + len(found.after)
    return Pilot(restart, noise, restart_from, noise_from, found.datasets, start_s, run_s)


def designs(pilot: Pilot, effect: float) -> list[Design]:
    """For each number of datasets and repeats the fewest starts with 80 % power to find a relative
    `effect`; the pilot's own datasets and one repeat first, then by hours."""
    counts = sorted({max(pilot.datasets // f, min(pilot.datasets, MIN_DATASETS)) for f in FEWER})
    made = [
        Design(found, datasets, repeats, _hours(pilot, found, datasets * repeats))
        for datasets in counts
        for repeats in REPEATS
        if (found := _starts(pilot, effect, datasets * repeats)) is not None
    ]
    return sorted(made, key=lambda d: ((d.datasets, d.repeats) != (pilot.datasets, 1), d.hours))


def seconds(told: Iterable[AnyEvent]) -> tuple[float, float]:
    """Mean seconds of a start and of a run, each summed over the backends. A start lasts until its
    warm-up is over."""
    begun: dict[str, float] = {}
    took: dict[str, list[float]] = {}
    ran: dict[str, list[float]] = {}
    for event in told:
        match event:
            case events.BackendStarting():
                begun[event.backend] = event.at
            case events.BackendReady() if event.seconds:
                waited = event.at - begun.get(event.backend, event.at)
                around = min(waited, event.seconds + AROUND_A_LOAD_S)  # clocks may be set
                took.setdefault(event.backend, []).append(max(event.seconds, around))
            case events.RunFinished():
                backend = event.run.partition("/")[0]
                ran.setdefault(backend, []).append(event.figures.duration_s)
    return _summed(took), _summed(ran)


def _starts(pilot: Pilot, effect: float, runs: int) -> int | None:
    spread = math.sqrt(pilot.restart**2 + pilot.noise**2 / runs)
    return power.starts_for_difference(math.log1p(effect), spread)


def _hours(pilot: Pilot, starts: int, runs: int) -> float:
    return starts * (pilot.start_s + runs * pilot.run_s) / 3600


def _summed(by_backend: Mapping[str, Sequence[float]]) -> float:
    return sum(float(np.mean(values)) for values in by_backend.values())


def _runs_of_a_start(logs: Sequence[Side]) -> float:
    """Harmonic mean over starts, as the variance of a mean is what counts."""
    counts = [sum(map(len, own.values())) for side in logs for own in side.values()]
    return float(len(counts) / np.sum(1 / np.array(counts)))


def _noise(logs: Sequence[Side]) -> tuple[float, int] | None:
    """SD of a run, and the runs that it rests on."""
    alone = all(_is_repeated(side) for side in logs)
    rows = [
        ((backend if alone else 0, dataset), (backend, start), value)
        for backend, side in enumerate(logs)
        for start, dataset, value in _values(side)
    ]
    columns = [*_indicators([d for d, _, _ in rows]), *_indicators([s for _, s, _ in rows])]
    given, values = np.column_stack(columns), np.array([v for _, _, v in rows])
    fitted, _, rank, _ = np.linalg.lstsq(given, values, rcond=None)
    freedom = len(values) - int(rank)
    if freedom < 1:
        return None
    left = values - given @ fitted
    return math.sqrt(float(left @ left) / freedom), len(values)


def _is_repeated(side: Side) -> bool:
    """Whether every dataset ran more than once at this backend."""
    counts: dict[str, int] = {}
    for _, dataset, _ in _values(side):
        counts[dataset] = counts.get(dataset, 0) + 1
    return min(counts.values(), default=0) > 1


def _values(side: Side) -> Iterator[tuple[int, str, float]]:
    return (
        (start, dataset, value)
        for start, own in side.items()
        for dataset, run in own.items()
        for value in run
    )


def _indicators(names: Sequence[tuple[object, object]]) -> list[Floats]:
    return [np.array([n == name for n in names], dtype=float) for name in dict.fromkeys(names)]
