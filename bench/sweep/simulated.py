"""Run directories whose results are written, not measured: what comparisons are tried on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.experiment import events, plan
from core.experiment.cell import Cell
from core.experiment.config import Config
from core.experiment.events import AnyEvent, RunFigures
from core.experiment.plan import Run
from core.experiment.sweep import Settings
from core.experiment.tables import Backend, Experiment, Model
from core.files import formatted, write_whole
from core.rundir.about import About, Host
from core.rundir.result import Result
from core.rundir.sweep import CELLS, NAME, SweepFile

Values = Mapping[str, Mapping[int, Mapping[str, Sequence[float]]]]
"""Backend → start → dataset → TPOT of each repeat, ms."""
FIGURES = RunFigures(
    completed=2,
    failed=0,
    duration_s=1.0,
    output_throughput=None,
    latencies={},
    score=None,
    cv=None,
    aggregated_cv=None,
    excess_cv=None,
)
RESTART, NOISE = 0.013, 0.03  # SDs of a start and of a run, as on two H200
REQUESTS, SPREAD = 100, 0.3  # of a run whose p99 is drawn: requests, and SD of their logarithms


def write(path: Path, values: Values, config: Config | None = None, **more: Any) -> Path:
    """A run directory with these results. `more`: what run.json says otherwise."""
    config = config or config_of([Backend(name=name) for name in values])
    fields: dict[str, Any] = {
        "config": config,
        "engine": "builtin (NumPy, CPU)",
        "engine_kind": "builtin",
        "backends": list(values),
        "started": "2026-01-01T00:00:00+00:00",
        "versions": {},
        "python": "3.11",
        "host": Host(name="h", system="Linux", cpus=2),
        "gpus": [],
        "runs": [],
    }
    write_whole(path / "run.json", formatted(About(**fields | more)))
    told: list[AnyEvent] = []
    runs: list[Run] = []
    for backend, side in values.items():
        for start, own in side.items():
            for dataset, run in own.items():
                for repeat, value in enumerate(run, 1):
                    made = Run(
                        backend, dataset, plan.label(dataset, repeat, start=start), "", start=start
                    )
                    file = f"{backend}/results_json/{made.label}.json"
                    write_whole(path / file, formatted(result(backend, dataset, start, value)))
                    told.append(events.RunFinished(run=made.id, figures=FIGURES, result=file))
                    runs.append(made)
    begun = events.ExperimentStarted(name="s", engine="e", runs=runs)
    lines = [events.encode(event) + b"\n" for event in (begun, *told)]
    write_whole(path / "events.jsonl", b"".join(lines))
    return path


def sweep(
    path: Path,
    cells: Mapping[str, tuple[Config, Values]],
    settings: Mapping[str, Settings] | None = None,
) -> Path:
    """A sweep's folder: slug → the config and the results of each cell; without results, one that
    has not begun."""
    made = [
        Cell(slug=slug, settings=(settings or {}).get(slug, {}), config=config)
        for slug, (config, _) in cells.items()
    ]
    for slug, (config, values) in cells.items():
        if values:
            write(path / CELLS / slug, values, config)
    asked = SweepFile(name="s", started="", seed=0, metric="mean_tpot_ms", cells=made)
    write_whole(path / NAME, formatted(asked))
    return path


def config_of(backends: Sequence[Backend], **experiment: Any) -> Config:
    return Config(
        path=Path("/experiments.toml"),
        experiment=Experiment(**experiment),
        model=Model(),
        backends=tuple(backends),
        dataset_paths=(),
    )


def result(backend: str, dataset: str, start: int, tpot_ms: float) -> Result:
    """A run whose TPOT is that, and whose throughput is its inverse. The prompts' lengths tell the
    datasets apart."""
    return Result(
        backend=backend,
        start=start,
        dataset_name=dataset,
        num_prompts=2,
        completed=2,
        input_lens=[int(dataset), 7],
        mean_tpot_ms=tpot_ms,
        decode_step_ms=tpot_ms,
        output_throughput=1000 / tpot_ms,
    )


def drawn(
    rng: np.random.Generator, starts: int, datasets: int, change: float = 0.0, *, p99: bool = False
) -> dict[int, dict[str, list[float]]]:
    """Starts that a restart and noise move, about levels that the datasets have on both sides; of
    means, or of the 99th percentiles of runs."""
    level = np.random.default_rng(0).uniform(2, 3, datasets)
    made = {}
    for start in range(1, starts + 1):
        noise = rng.normal(0, NOISE, datasets)
        if p99:
            noise += np.percentile(rng.normal(0, SPREAD, (datasets, REQUESTS)), 99, axis=1)
        logs = level + np.log1p(change) + rng.normal(0, RESTART) + noise
        made[start] = {f"{d:03d}": [float(np.exp(logs[d - 1]))] for d in range(1, datasets + 1)}
    return made
