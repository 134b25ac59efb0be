"""What the rules of validity look at: the part of a run directory, or of a folder of gate logs,
that speaks for or against its own figures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from core.analysis.results import Results
from core.experiment import dose
from core.experiment.config import Config
from core.experiment.events import AnyEvent, BackendReady, RunFailed, RunStarted, Sampled
from core.recorder.gatescope_recorder.kernel import Kernel
from core.routing import folder as gate_folder
from core.routing import places as logs
from core.routing import repeats, upstream
from core.routing.imbalance import Imbalance
from core.rundir import about as run_json
from core.rundir.journal import stream_events
from core.rundir.result import Result
from core.rundir.selection import ALL, Selection


@dataclass(frozen=True, slots=True)
class Journal:
    """What the journal tells beside the results."""

    ready: Sequence[BackendReady] = ()  # every server start that came up, in order
    samples: Sequence[Sampled] = ()
    started: Mapping[str, float] = field(default_factory=dict)  # wall clock of a run's last start
    failed: Mapping[str, str] = field(default_factory=dict)  # runs that failed for good → why


@dataclass(frozen=True, slots=True)
class Evidence:
    """By run id ("baseline/001"), or by a folder's name where there are gate logs only. What is
    empty is unknown: the rules that need it are not checked."""

    results: Mapping[str, Result] = field(default_factory=dict)
    unreadable: Mapping[str, str] = field(default_factory=dict)  # files that are no result → why
    impossible: Mapping[str, Sequence[str]] = field(default_factory=dict)  # unknown figures
    routing: Mapping[str, Imbalance] = field(default_factory=dict)
    # backend, or folder → a CV of each dataset: per step, and where it is known aggregated
    cvs: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    # numbers of the layers that have a log file
    layers: Mapping[str, Sequence[int]] = field(default_factory=dict)
    # gate-log folder → what the recorder reports
    recorders: Mapping[str, Sequence[str]] = field(default_factory=dict)
    # gate-log folder → what is wrong with the prompts that the recorder saw, or nothing
    prompts: Mapping[str, str] = field(default_factory=dict)
    kernels: Mapping[str, Kernel] = field(default_factory=dict)  # backend → its MoE kernel
    config: Config | None = None
    journal: Journal = Journal()

    @property
    def natural(self) -> dict[str, Imbalance]:
        """The runs whose routing was not forced: what is forced may be constant, and leave a rank
        idle."""
        return {run: log for run, log in self.routing.items() if not dose.of_label(run)}


def of_run_directory(path: Path, groups: Sequence[Results], chosen: Selection = ALL) -> Evidence:
    """`groups`: the results of the chosen datasets, as core.analysis.results reads them. Evidence
    about a server, not about a run, is of all datasets. FileError if the journal or run.json cannot
    be read."""
    about = run_json.read(path)
    folders = [folder for group in groups for folder in gate_folder.starts(path / group.name)]
    return replace(
        of_results(groups),
        recorders={f"{f.parent.name}/{f.name}": gate_folder.problems(f) for f in folders},
        prompts={f"{f.parent.name}/{f.name}": repeats.random_prompts(f) for f in folders},
        kernels={name: note.kernel for name, note in about.servers.items() if note.kernel},
        config=about.config,
        journal=_journal(stream_events(path), chosen),
    )


def of_results(groups: Sequence[Results]) -> Evidence:
    """Folders of results with upstream's imbalance mappings, from any tool."""
    results = {
        f"{group.name}/{label}": result
        for group in groups
        for label, result in {**group.by_label, **group.imposed}.items()
    }
    return Evidence(
        results=results,
        unreadable={
            f"{group.name}/{label}": why
            for group in groups
            for label, why in group.unreadable.items()
        },
        impossible={
            f"{group.name}/{label}": phrases
            for group in groups
            for label, phrases in group.impossible.items()
        },
        routing=_routing(results),
        cvs={
            group.name: [_one_a_dataset(group.per_step), _one_a_dataset(group.aggregated)]
            for group in groups
        },
    )


def of_result(run: str, result: Result) -> Evidence:
    """One run's result alone."""
    return Evidence(results={run: result}, routing=_routing({run: result}))


def of_gate_logs(folder: Path, found: Mapping[str, Imbalance]) -> Evidence:
    """`found`: what core.routing.imbalance made of `folder`, by the folders in it or, of a run
    directory, by run ("baseline/gates_logs_001")."""
    places = {
        place.name: place for place in (folder.resolve(), *folder.iterdir()) if place.is_dir()
    }
    layers = {name: [*upstream.layer_files(places[name])] for name in found if name in places}
    cvs: dict[str, dict[str, float]] = defaultdict(dict)
    for name, log in found.items():
        if log.per_step_cv is not None:
            cvs[name.rpartition("/")[0] or folder.resolve().name][name] = log.per_step_cv
    return Evidence(
        routing=found,
        cvs={backend: [_one_a_dataset(own)] for backend, own in cvs.items()},
        layers={name: numbers for name, numbers in layers.items() if numbers},
        prompts={place.name: repeats.random_prompts(place) for place in logs.all_in(folder)},
    )


def _one_a_dataset(cvs: Mapping[str, float]) -> list[float]:
    """Of the repeats of a dataset, which a deterministic server may route alike, the last."""
    return list({label.partition("-")[0]: cv for label, cv in cvs.items()}.values())


def _journal(told: Iterable[AnyEvent], chosen: Selection) -> Journal:
    ready: list[BackendReady] = []
    samples: list[Sampled] = []
    started: dict[str, float] = {}
    failed: dict[str, str] = {}
    for event in told:
        match event:
            case BackendReady():
                ready.append(event)
            case Sampled() if chosen.has(event.run):
                samples.append(event)
            case RunStarted() if chosen.has(event.run):
                started[event.run] = event.at
                failed.pop(event.run, None)
            case RunFailed() if chosen.has(event.run):
                failed[event.run] = event.reason
    return Journal(ready, samples, started, failed)


def _routing(results: Mapping[str, Result]) -> dict[str, Imbalance]:
    return {run: r.measured_imbalance for run, r in results.items() if r.measured_imbalance}
