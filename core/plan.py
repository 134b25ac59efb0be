"""Config → the ordered list of runs, each with a stable id."""

from __future__ import annotations

import difflib
import random
from collections.abc import Collection
from pathlib import Path

import msgspec

from core import dataset
from core.config import Backend, Config, ConfigError
from core.dataset import Dataset


class Run(msgspec.Struct, frozen=True):
    """One data set at one backend, once. `label` ("001", "001-r2") names its files and its gate-log segment."""

    backend: str
    dataset: str
    label: str
    repeat: int
    path: Path

    @property
    def id(self) -> str:
        return f"{self.backend}/{self.label}"


class Plan(msgspec.Struct, frozen=True):
    """What is run, in order: backend by backend, since a server start is what costs."""

    backends: tuple[Backend, ...]
    datasets: dict[str, Dataset]
    runs: tuple[Run, ...]

    def of(self, backend: str) -> list[Run]:
        return [r for r in self.runs if r.backend == backend]


def make(config: Config, only: Collection[str] = (), backends: Collection[str] = ()) -> Plan:
    """The plan, narrowed to some data set indices and backends. Reads every data set, so a bad one stops the start."""
    chosen = _backends(config, backends)
    datasets = _datasets(config, only)
    runs = [
        Run(backend.name, index, index if repeat == 1 else f"{index}-r{repeat}", repeat, datasets[index].path)
        for backend in chosen
        for repeat in range(1, config.experiment.repeats + 1)
        for index in _order(config, list(datasets), repeat)
    ]
    return Plan(chosen, datasets, tuple(runs))


def _order(config: Config, indices: list[str], repeat: int) -> list[str]:
    """The same order for every backend, so that a drift over time hits both alike."""
    if config.experiment.shuffle:
        random.Random(f"{config.experiment.seed}/{repeat}").shuffle(indices)
    return indices


def _backends(config: Config, names: Collection[str]) -> tuple[Backend, ...]:
    known = [b.name for b in config.backends]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"{config.path}: [[backends]]: there is no backend {name!r}; {hint}")
    return tuple(b for b in config.backends if not names or b.name in names)


def _datasets(config: Config, only: Collection[str]) -> dict[str, Dataset]:
    paths: dict[str, Path] = {}
    for place, path in enumerate(config.dataset_paths, 1):
        index = dataset.index_of(path, place)
        if index in paths:
            raise ConfigError(
                f"{config.path}: [experiment], datasets: expected an index of its own for each file,"
                f" {paths[index]} and {path} share {index}; rename one"
            )
        paths[index] = path
    for index in only:
        if index not in paths:
            near = difflib.get_close_matches(index, list(paths), n=1, cutoff=0.3)
            raise ConfigError(
                f"--only {index}: no such data set; there are {len(paths)}, from {min(paths)} to {max(paths)}"
                + (f"; did you mean {near[0]}?" if near else "")
            )
    try:
        return {i: dataset.read(p, i) for i, p in paths.items() if not only or i in only}
    except dataset.DatasetError as error:
        raise ConfigError(str(error)) from None
