"""Config → the ordered list of runs, each with a stable id."""

from __future__ import annotations

import difflib
import random
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import msgspec

from core.errors import ConfigError, UsageError
from core.experiment.config import Config
from core.experiment.dose import Dose, Replay
from core.workload import dataset, formats, trace
from core.workload.dataset import Dataset


class Run(msgspec.Struct, frozen=True):
    """One dataset at one backend, once. `label` ("001", "001-r2") names its files and its gate-log
    segment; where routing is forced, it ends with the dose ("001~hot-rank~0.5") or with the run
    that it replays ("001~replay~007")."""

    backend: str
    dataset: str
    label: str
    file: str
    dose: Dose | None = None
    replay: Replay | None = None

    @property
    def imposed(self) -> Dose | Replay | None:
        """What its routing is forced to; None where it is natural."""
        return self.dose or self.replay

    @property
    def id(self) -> str:
        return f"{self.backend}/{self.label}"


class Plan(msgspec.Struct, frozen=True):
    """What is run, in order: backend by backend, since a server start is what costs; or
    interleaved."""

    datasets: dict[str, Dataset]
    runs: tuple[Run, ...]

    @property
    def backends(self) -> list[str]:
        return list(dict.fromkeys(r.backend for r in self.runs))


def make(config: Config, only: Collection[str] = (), backends: Collection[str] = ()) -> Plan:
    """The plan, narrowed to some dataset indices and backends. Reads every dataset, so a bad one
    stops the start."""
    paths = select_datasets(config, only)
    runs = [
        _run(backend, index, repeat, paths[index], imposed)
        for backend, repeat in _passes(config, select_backends(config, backends))
        for index, imposed in _order(config, list(paths), repeat)
    ]
    datasets = read_datasets(paths)
    if config.experiment.arrival == "trace":
        for data in datasets.values():
            trace.check(data, config.experiment.num_prompts, config.experiment.trace_unit)
    return Plan(datasets, tuple(runs))


def _run(backend: str, index: str, repeat: int, file: Path, imposed: Dose | Replay | None) -> Run:
    dose = imposed if isinstance(imposed, Dose) else None
    replay = imposed if isinstance(imposed, Replay) else None
    return Run(backend, index, label(index, repeat, imposed), str(file), dose, replay)


def label(index: str, repeat: int, imposed: Dose | Replay | None = None) -> str:
    """`001`, `001-r2` from the second repeat on, and `001-r2~hot-rank~0.5` or `001-r2~replay~007`
    where routing is forced."""
    repeated = index if repeat == 1 else f"{index}-r{repeat}"
    return f"{repeated}~{imposed.label}" if imposed else repeated


def dataset_of(run: str) -> str:
    """The dataset of a run, by its id or its label: "001" of `baseline/001-r2~hot-rank~0.5`."""
    return run.rpartition("/")[2].partition("~")[0].partition("-")[0]


def again(
    config: Config, known: Collection[str], datasets: Collection[str], backends: Collection[str]
) -> list[Run]:
    """One more run of each of these datasets at each of these backends; `known` are the ids that
    are taken."""
    paths = select_datasets(config, datasets)
    return [
        next(
            run
            for repeat in range(1, len(known) + 2)
            if (run := Run(backend, index, label(index, repeat), str(path))).id not in known
        )
        for backend in select_backends(config, backends)
        for index, path in paths.items()
    ]


def _passes(config: Config, backends: list[str]) -> list[tuple[str, int]]:
    """Backend and repeat of each pass over the datasets. Interleaved they go A B, B A, A B: a
    steady drift over time then hits both backends alike, and the neighbours share a server."""
    repeats = range(1, config.experiment.repeats + 1)
    if config.experiment.interleave:
        return [
            (backend, repeat)
            for repeat in repeats
            for backend in (backends if repeat % 2 else backends[::-1])
        ]
    return [(backend, repeat) for backend in backends for repeat in repeats]


def _order(
    config: Config, indices: list[str], repeat: int
) -> list[tuple[str, Dose | Replay | None]]:
    """Every dataset, with its natural routing, at each dose, and with the recorded runs that it
    replays. The same order for every backend, so that a drift over time hits both alike."""
    doses = config.dose.doses if config.dose else []
    order = [
        (index, imposed)
        for index in indices
        for imposed in (None, *doses, *_replays(config, index, indices))
    ]
    if config.experiment.shuffle:
        random.Random(f"{config.experiment.seed}/{repeat}").shuffle(order)
    return order


def _replays(config: Config, index: str, indices: list[str]) -> list[Replay]:
    """The recorded runs that are replayed with a dataset: those of its own number, and those whose
    dataset is not among the chosen, which are replayed with each."""
    return [
        Replay(name)
        for name in config.replays
        if (own := dataset_of(name)) == index or own not in indices
    ]


def select_backends(config: Config, names: Collection[str]) -> list[str]:
    """The named backends, or all of them. UsageError for an unknown one."""
    known = [b.name for b in config.backends]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise UsageError(f"{config.path}: [[backends]]: there is no backend {name!r}; {hint}")
    return [name for name in known if not names or name in names]


def select_datasets(config: Config, only: Collection[str]) -> dict[str, Path]:
    """Index → file of the chosen datasets, or of all. UsageError for an unknown index, or a shared
    one."""
    paths: dict[str, Path] = {}
    for place, path in enumerate(config.dataset_paths, 1):
        index = dataset.index_of(path, place)
        if index in paths:
            raise ConfigError(
                f"{config.path}: [experiment], datasets: expected an index of its own for each"
                f" file, {paths[index]} and {path} share {index}; rename one"
            )
        paths[index] = path
    return {index: paths[index] for index in named(only, list(paths))}


def named(only: Collection[str], known: Sequence[str]) -> list[str]:
    """Those of the `known` dataset indices that `only` names, or all of them. UsageError for an
    unknown index."""
    for index in only:
        if index not in known:
            span = f", from {min(known)} to {max(known)}" if known else ""
            raise UsageError(f"--only {index}: no such dataset; there are {len(known)}{span}")
    return [index for index in known if not only or index in only]


def read_datasets(paths: Mapping[str, Path]) -> dict[str, Dataset]:
    """Index → dataset. DatasetError for one that cannot be used."""
    return {index: formats.read(path, index) for index, path in paths.items()}
