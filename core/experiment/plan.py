"""Config → cells → starts → runs: which servers are started, in which order, and what each is
sent."""

from __future__ import annotations

import difflib
import itertools
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from core.errors import ConfigError, UsageError
from core.experiment.config import Config
from core.experiment.dose import Dose, Replay
from core.workload import dataset, formats, trace
from core.workload.dataset import Dataset


class Run(msgspec.Struct, frozen=True):
    """One dataset at one backend, once. `label` ("001", "001-s2-r2": start 2, repeat 2) names its
    files and its gate-log segment; where routing is forced, it ends with the dose
    ("001~hot-rank~0.5") or with the run that it replays ("001~replay~007"). `start`: which of its
    backend's server starts it belongs to."""

    backend: str
    dataset: str
    label: str
    file: str
    dose: Dose | None = None
    start: int = 1
    replay: Replay | None = None

    @property
    def imposed(self) -> Dose | Replay | None:
        """What its routing is forced to; None where it is natural."""
        return self.dose or self.replay

    @property
    def id(self) -> str:
        return f"{self.backend}/{self.label}"


class Start(msgspec.Struct, frozen=True):
    """One life of a server: `cell` names its configuration (a backend), `number` counts the cell's
    starts from 1."""

    cell: str
    number: int
    runs: tuple[Run, ...]


class Plan(msgspec.Struct, frozen=True):
    """What is run: the starts of every cell, in order."""

    datasets: dict[str, Dataset]
    starts: tuple[Start, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple(run for start in self.starts for run in start.runs)

    @property
    def backends(self) -> list[str]:
        return list(dict.fromkeys(start.cell for start in self.starts))


def make(config: Config, only: Collection[str] = (), backends: Collection[str] = ()) -> Plan:
    """The plan, narrowed to some dataset indices and backends. Reads every dataset, so a bad one
    stops the start."""
    paths = select_datasets(config, only)
    cells = select_backends(config, backends)
    starts = (
        Start(cell, number, tuple(_runs(config, cell, number, repeats, paths)))
        for cell, number, repeats in _lives(config, cells)
    )
    datasets = read_datasets(paths)
    if config.experiment.arrival == "trace":
        for data in datasets.values():
            trace.check(data, config.experiment.num_prompts, config.experiment.trace_unit)
    return Plan(datasets, tuple(start for start in starts if start.runs))


def label(index: str, repeat: int, imposed: Dose | Replay | None = None, start: int = 1) -> str:
    """`001`, `001-r2` from the second repeat on, `001-s2` where a second start runs the dataset
    again, and `001-s2-r2~hot-rank~0.5` or `001-s2-r2~replay~007` where routing is forced."""
    started = index if start == 1 else f"{index}-s{start}"
    repeated = started if repeat == 1 else f"{started}-r{repeat}"
    return f"{repeated}~{imposed.label}" if imposed else repeated


def dataset_of(run: str) -> str:
    """The dataset of a run, by its id or its label: "001" of `baseline/001-r2~hot-rank~0.5`."""
    return run.rpartition("/")[2].partition("~")[0].partition("-")[0]


def again(
    config: Config, known: Mapping[str, Run], datasets: Collection[str], backends: Collection[str]
) -> list[Run]:
    """One more run of each of these datasets at the last start of each of these backends; `known`
    are the runs there are, by id."""
    paths = select_datasets(config, datasets)
    last = {run.backend: run.start for run in sorted(known.values(), key=lambda run: run.start)}
    return [
        _free(known, Run(backend, index, "", str(path), start=last.get(backend, 1)), config)
        for backend in select_backends(config, backends)
        for index, path in paths.items()
    ]


def changes(order: Sequence[Run]) -> int:
    """How many times the server changes along these runs."""
    return sum((a.backend, a.start) != (b.backend, b.start) for a, b in itertools.pairwise(order))


def beside(order: Sequence[Run], added: Sequence[Run]) -> list[Run]:
    """`order` with each added run behind the last one of its server; at the end where it has
    none."""
    made = list(order)
    for run in added:
        own = [i for i, r in enumerate(made) if (r.backend, r.start) == (run.backend, run.start)]
        made.insert(own[-1] + 1 if own else len(made), run)
    return made


def _free(known: Mapping[str, Run], run: Run, config: Config) -> Run:
    """`run` with the label of the first repeat that is not taken."""
    start = 1 if config.experiment.split else run.start
    labelled = (
        msgspec.structs.replace(run, label=label(run.dataset, repeat, start=start))
        for repeat in itertools.count(1)
    )
    return next(run for run in labelled if run.id not in known)


def _lives(config: Config, cells: list[str]) -> list[tuple[str, int, list[int]]]:
    """Cell, number and repeats of each server start, A B, B A, A B: a steady drift over time then
    affects both alike. Interleaved cells take turns at every repeat, and a start is a turn."""
    repeats = list(range(1, config.experiment.repeats + 1))
    if config.experiment.interleave:
        turns = [(cell, repeat) for repeat in repeats for cell in _turned(cells, repeat)]
        met = [
            (cell, [repeat for _, repeat in turn])
            for cell, turn in itertools.groupby(turns, key=lambda turn: turn[0])
        ]
        return [
            (cell, 1 + sum(cell == before for before, _ in met[:place]), own)
            for place, (cell, own) in enumerate(met)
        ]
    return [
        (cell, number, repeats)
        for number in range(1, starts_of(config) + 1)
        for cell in _turned(cells, number)
    ]


def _turned(cells: list[str], turn: int) -> list[str]:
    return cells if turn % 2 else cells[::-1]


def starts_of(config: Config) -> int:
    """Server starts of a backend; "auto" is 1 until the engine is known."""
    starts = config.experiment.starts
    return 1 if starts == "auto" else starts


def _runs(
    config: Config, cell: str, number: int, repeats: Sequence[int], paths: Mapping[str, Path]
) -> Iterator[Run]:
    """What one start is sent: every dataset, or its share of them."""
    split, starts = config.experiment.split, starts_of(config)
    indices = list(paths)[number - 1 :: starts] if split else list(paths)
    labelled = 1 if split or config.experiment.interleave else number
    for repeat in repeats:
        for index, imposed in _order(config, indices, list(paths), repeat, labelled):
            name = label(index, repeat, imposed, labelled)
            dose = imposed if isinstance(imposed, Dose) else None
            replay = imposed if isinstance(imposed, Replay) else None
            yield Run(cell, index, name, str(paths[index]), dose, number, replay)


def _order(
    config: Config, indices: list[str], chosen: list[str], repeat: int, start: int
) -> list[tuple[str, Dose | Replay | None]]:
    """Every dataset, with its natural routing, at each dose, and with the recorded runs that it
    replays. The same order for every backend, so that a drift over time hits both alike."""
    doses = config.dose.doses if config.dose else []
    order = [
        (index, imposed)
        for index in indices
        for imposed in (None, *doses, *_replays(config, index, chosen))
    ]
    if config.experiment.shuffle:
        again = "" if start == 1 else f"/{start}"
        random.Random(f"{config.experiment.seed}/{repeat}{again}").shuffle(order)
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
