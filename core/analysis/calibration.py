"""What `gatescope calibrate` found of a backend: its price list and its cost model, kept for every
later run of the same server on the same kind of GPU."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from core import files
from core.analysis.cost_model import WORK, CostModel
from core.errors import FileError
from core.routing import price
from core.routing.price import PriceList, Prices
from core.rundir.about import About

NAME = "calibration.json"  # in the run directory of the sweep


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """`made`: when, UTC. `no_prices`: why there is no price list."""

    backend: str
    engine: str
    made: str
    price_list: PriceList | None = None
    no_prices: str = ""
    decode: CostModel
    prefill: CostModel

    def prices(self) -> Prices | None:
        return price.fit(self.price_list) if self.price_list else None

    def model(self, phase: str) -> CostModel:
        return self.prefill if phase == "prefill" else self.decode


def read(file: Path) -> Calibration:
    """A calibration's file, or the run directory that holds one. FileError if it is none."""
    place = file / NAME if file.is_dir() else file
    found = files.read(place, Calibration)
    for model in (found.decode, found.prefill):
        if model.by and model.by not in WORK:
            raise FileError(f"{place}: a cost model by {model.by!r}, which this version lacks")
    return found


def write(found: Calibration, run_dir: Path) -> Path:
    """Into its run directory."""
    files.write_whole(run_dir / NAME, msgspec.json.encode(found) + b"\n")
    return run_dir / NAME


def keep(found: Calibration, about: About) -> Path:
    """Where later runs look for it. FileError if it cannot be written there."""
    place = place_of(about, found.backend)
    try:
        files.write_whole(place, msgspec.json.encode(found) + b"\n")
    except OSError as error:
        raise FileError(f"{place}: cannot be written: {error.strerror}") from None
    return place


def of_backend(about: About, backend: str) -> Calibration | None:
    """The calibration of a run directory's backend, made on a machine of this kind; None if there
    is none that can be read."""
    try:
        return read(place_of(about, backend))
    except FileError:
        return None


def place_of(about: About, backend: str) -> Path:
    """Of everything that its cost depends on: engine, GPU, model, layout, kernel, graphs. FileError
    as `files.cache`."""
    own = next(one for one in about.config.backends if one.name == backend)
    gpu = about.gpus[0].split(", ")[1] if about.gpus else "cpu"
    is_builtin = about.engine_kind == "builtin"
    model = about.config.model.weights if is_builtin else Path(about.config.model.id).name
    layout = f"tp{own.tensor_parallel} dp{own.data_parallel}{' ep' if own.expert_parallel else ''}"
    parts = [about.engine, gpu, model, layout, own.moe_backend, *own.extra_args]
    parts += ["eager"] if own.enforce_eager else []
    name = re.sub(r"[^A-Za-z0-9.]+", "-", "_".join(parts)).strip("-")
    return files.cache() / "calibrations" / f"{name[:200]}.json"
