"""What a comparison is between: each backend of a run directory, each cell of a sweep, with what it
was asked to be, what ran, and on what machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from core.analysis import results
from core.analysis.results import Results
from core.errors import NoDataError
from core.experiment import plan
from core.experiment.config import Config
from core.experiment.tables import Backend
from core.rundir import about, sweep
from core.rundir.about import About
from core.rundir.result import Result

# What a server is called, and where it is reached, is not what it is.
NOT_THE_SERVER = ("name", "port", "python", "startup_timeout_s")
LOAD = (
    "num_prompts",
    "input_len",
    "output_len",
    "temperature",
    "request_rate",
    "arrival",
    "burstiness",
    "ramp_up_s",
    "max_concurrency",
)
Facts = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Comparand:
    """One side's cell, as `config` asked for it. `server`, `load`, `ran`: what was asked of the
    server, what it was sent, and what the server, its versions and its machine are known to have
    been."""

    name: str
    path: Path
    backend: str
    engine: str
    config: Config
    group: Results
    server: Facts
    load: Facts
    ran: Facts

    @property
    def asked(self) -> Backend:
        """The server that was asked for; with defaults where run.json does not name it."""
        known = (own for own in self.config.backends if own.name == self.backend)
        return next(known, Backend(name=self.backend))


def read(path: Path) -> list[Comparand]:
    """Every cell of a sweep's folder, or every backend of a run directory. FileError if `path` is
    neither; NoDataError if it has no result."""
    found = [
        one
        for slug, own in sweep.run_directories(path).items()
        for one in _of_run_directory(own, slug)
    ]
    if not found:
        raise NoDataError(f"{path}: no run is done there, so there is nothing to compare")
    return found


def fingerprints(group: Results) -> dict[str, object]:
    """Dataset → what its texts are known by: the lengths of the prompts, and the score that is
    predicted from them. Where neither is known, its index."""
    found: dict[str, object] = {}
    for label, one in group.by_label.items():
        found.setdefault(plan.dataset_of(label), _fingerprint(one) or plan.dataset_of(label))
    return found


def _of_run_directory(path: Path, slug: str) -> list[Comparand]:
    known = about.read(path)
    groups, _ = results.of_run_directory(path)
    return [
        Comparand(
            name=slug or group.name,
            path=path,
            backend=group.name,
            engine=known.engine,
            config=known.config,
            group=group,
            server=_server(known, group.name),
            load=_load(known.config),
            ran={**_ran(known, group.name), **_clocks(group)},
        )
        for group in groups
        if group.by_label
    ]


def _server(known: About, name: str) -> Facts:
    backend = next((b for b in known.config.backends if b.name == name), Backend(name=name))
    own = msgspec.structs.asdict(backend)
    model = msgspec.structs.asdict(known.config.model)
    return {
        "engine": known.engine_kind,
        **{key: _shown(value) for key, value in own.items() if key not in NOT_THE_SERVER},
        **{f"model.{key}": _shown(value) for key, value in model.items()},
    }


def _load(config: Config) -> Facts:
    return {key: _shown(getattr(config.experiment, key)) for key in LOAD}


def _ran(known: About, name: str) -> Facts:
    note = known.servers.get(name)
    return {
        **{f"version of {package}": version for package, version in known.versions.items()},
        "version of Python": known.python,
        **{f"server: {key}": value for key, value in (note.ran if note else {}).items()},
        "GPUs": "; ".join(known.gpus) or "none",
        "host": str(known.host.name),
        "system": known.host.system,
        "CPUs": str(known.host.cpus),
    }


def _clocks(group: Results) -> Facts:
    """The clock of the GPUs' SMs during the runs, to 10 MHz, and the power limit of one."""
    runs = list(group.by_label.values())
    clocks = [run.sm_clock_mhz for run in runs if run.sm_clock_mhz is not None]
    limits = sorted({run.power_limit_w for run in runs if run.power_limit_w is not None})
    found = {"power limit, W": ", ".join(f"{watts:g}" for watts in limits)} if limits else {}
    if clocks:
        found["mean SM clock, MHz"] = f"{round(float(np.mean(clocks)), -1):.0f}"
    return found


def _fingerprint(one: Result) -> object:
    known = [n for n in one.input_lens if n is not None]
    if not known and one.imbalance_score is None:
        return None
    return one.num_prompts, tuple(one.input_lens), one.imbalance_score


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={own}" for key, own in value.items()) or "none"
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return str(value)
