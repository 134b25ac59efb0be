"""What the rules of validity look at: the part of a run directory, or of a folder of gate logs,
that speaks for or against its own figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from msgspec import Struct

from core.analysis.results import Results
from core.experiment import dose
from core.experiment.config import Config
from core.experiment.events import AnyEvent, BackendReady, RunFailed, RunStarted, Sampled
from core.routing import folder as gate_folder
from core.routing import upstream
from core.routing.imbalance import Imbalance
from core.routing.run import LongestStep
from core.rundir import about
from core.rundir.journal import stream_events
from core.rundir.selection import ALL, Selection


class Routing(Struct, frozen=True):
    """What a gate log says of one run, in short; see core.routing.imbalance.Imbalance."""

    steps: int
    tokens: int
    layers: int
    per_step_cv: float | None = None
    violations: int = 0
    constant_loads: bool = False
    rank_loads: list[float | None] = []


class SeenTokens(Struct, frozen=True):
    tokens_due: int
    tokens_seen: int


class LoadClient(Struct, frozen=True):
    """See core.load.trust.Trust."""

    warnings: list[str] = []


class RunResult(Struct, frozen=True):
    """The part of a result file that rules read; what another tool wrote lacks some of it."""

    num_prompts: int = 0
    completed: int = 0
    duration: float | None = None
    total_input_tokens: int = 0
    total_output_tokens: int = 0
    mean_tpot_ms: float | None = None
    decode_step_ms: float | None = None
    longest_step: LongestStep | None = None
    delivery_lag_ms: float | None = None
    measured_imbalance: Routing | None = None
    measured_imbalance_reason: str | None = None
    gate_log: SeenTokens | None = None
    client: LoadClient | None = None


@dataclass(frozen=True, slots=True)
class Journal:
    """What the journal tells beside the results."""

    ready: Sequence[BackendReady] = ()  # every server start that came up, in order
    samples: Sequence[Sampled] = ()
    started: Mapping[str, float] = field(default_factory=dict)  # wall clock of a run's last start
    failed: Mapping[str, str] = field(default_factory=dict)  # runs that failed for good → why


@dataclass(frozen=True, slots=True)
class Evidence:
    """All by run id ("baseline/001"), or by a folder's name where there are gate logs only. What is
    empty is unknown: the rules that need it are not checked."""

    results: Mapping[str, RunResult] = field(default_factory=dict)
    unreadable: Mapping[str, str] = field(default_factory=dict)  # results that are none → why
    routing: Mapping[str, Routing] = field(default_factory=dict)
    cvs: Mapping[str, Sequence[float]] = field(
        default_factory=dict
    )  # backend, or folder → a per-step CV of each dataset
    layers: Mapping[str, Sequence[int]] = field(
        default_factory=dict
    )  # numbers of the layers that have a log file
    recorders: Mapping[str, Sequence[str]] = field(
        default_factory=dict
    )  # gate-log folder → what the recorder reports
    config: Config | None = None
    journal: Journal = Journal()

    @property
    def natural(self) -> dict[str, Routing]:
        """The runs whose routing was not forced: what is forced may be constant, and leave a rank
        idle."""
        return {run: log for run, log in self.routing.items() if not dose.of_label(run)}


def of_run_directory(path: Path, groups: Sequence[Results], chosen: Selection = ALL) -> Evidence:
    """`groups`: the results of the chosen datasets, as core.analysis.results reads them. What
    speaks of a server, not of a run, is of all datasets. FileError where its journal or run.json
    is unreadable."""
    results, unreadable = _results(groups)
    folders = [folder for group in groups for folder in gate_folder.starts(path / group.name)]
    return Evidence(
        results=results,
        unreadable=unreadable,
        routing=_routing(results),
        cvs={group.name: _one_a_dataset(group.per_step) for group in groups},
        recorders={f"{f.parent.name}/{f.name}": gate_folder.problems(f) for f in folders},
        config=about.read_about(path).config,
        journal=_journal(stream_events(path), chosen),
    )


def of_results(groups: Sequence[Results]) -> Evidence:
    """Folders of results with upstream's imbalance mappings, whoever wrote them."""
    results, unreadable = _results(groups)
    cvs = {group.name: _one_a_dataset(group.per_step) for group in groups}
    return Evidence(results=results, unreadable=unreadable, routing=_routing(results), cvs=cvs)


def of_result(run: str, data: bytes) -> Evidence:
    """One run's result file alone. msgspec.DecodeError where it is none."""
    result = msgspec.json.decode(data, type=RunResult)
    return Evidence(results={run: result}, routing=_routing({run: result}))


def of_gate_logs(folder: Path, found: Mapping[str, Imbalance]) -> Evidence:
    """`found`: what core.routing.imbalance.measure_folder made of `folder`."""
    routing = {
        name: msgspec.convert(measured, Routing, from_attributes=True)
        for name, measured in found.items()
    }
    places = {
        place.name: place for place in (folder.resolve(), *folder.iterdir()) if place.is_dir()
    }
    layers = {name: _layer_numbers(places[name]) for name in found if name in places}
    return Evidence(
        routing=routing,
        cvs={
            folder.resolve().name: _one_a_dataset(
                {name: measured.per_step_cv for name, measured in found.items()}
            )
        },
        layers={name: numbers for name, numbers in layers.items() if numbers},
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


def _routing(results: Mapping[str, RunResult]) -> dict[str, Routing]:
    return {run: r.measured_imbalance for run, r in results.items() if r.measured_imbalance}


def _results(groups: Sequence[Results]) -> tuple[dict[str, RunResult], dict[str, str]]:
    results: dict[str, RunResult] = {}
    unreadable: dict[str, str] = {}
    for group in groups:
        for label, raw in {**group.by_label, **group.forced}.items():
            try:
                results[f"{group.name}/{label}"] = msgspec.convert(raw, RunResult)
            except msgspec.ValidationError as error:
                unreadable[f"{group.name}/{label}"] = str(error)
    return results, unreadable


def _layer_numbers(folder: Path) -> list[int]:
    """Of upstream's layer files in a folder."""
    return [
        int(found.group(1))
        for p in upstream.layer_files(folder)
        if (found := upstream.LAYER_FILE.match(p.name))
    ]
