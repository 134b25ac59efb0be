"""Results joined with their imbalance: what plots, tables and exports are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core import files
from core.errors import FileError, NoDataError
from core.experiment import dose
from core.rundir import about
from core.rundir.result import results as read_results
from core.rundir.selection import ALL, Selection

NAMES = {
    "mean_ttft_ms": ("TTFT", "ms"),
    "mean_tpot_ms": ("TPOT", "ms"),
    "output_throughput": ("throughput", "tok/s"),
}
IQR_FACTOR = 1.5


@dataclass(frozen=True, slots=True)
class Results:
    """One backend's results by label, with its real imbalance by the same labels where that is
    known.

    `by_label` holds the runs whose routing was natural, `forced` those whose routing was forced:
    never mixed.
    """

    name: str
    by_label: dict[str, dict[str, Any]]
    per_step: dict[str, float]
    aggregated: dict[str, float]
    forced: dict[str, dict[str, Any]] = field(default_factory=dict)

    def of(self, chosen: Selection) -> Results:
        """The same of the chosen datasets alone."""
        return Results(
            self.name,
            chosen.of(self.by_label),
            chosen.of(self.per_step),
            chosen.of(self.aggregated),
            chosen.of(self.forced),
        )

    def x(self, label: str, axis: str) -> float | None:
        """The imbalance of one result: "excess", "per-step", "aggregated" or "predicted";
        None where unknown."""
        result = self.by_label[label]
        if axis == "predicted":
            return number(result.get("imbalance_score"))
        if axis == "excess":
            return number((result.get("measured_imbalance") or {}).get("excess_cv"))
        return (self.per_step if axis == "per-step" else self.aggregated).get(label)


def of_run_directory(path: Path, chosen: Selection = ALL) -> tuple[list[Results], str]:
    """Every backend's results of the chosen datasets, in the order that they were run, and the
    engine's name.

    NoDataError where some are chosen and none of them has a result, and where a file is not as it
    should be.
    """
    names, engine = about.read_names(path)
    found = [
        of_folders(
            name,
            path / name / "results_json",
            _if_there(path / f"{name}_real_imbalance.json"),
            _if_there(path / f"{name}_real_imbalance_aggregated.json"),
        )
        for name in names
        if (path / name / "results_json").is_dir()
    ]
    found = [own for group in found if (own := group.of(chosen)).by_label or own.forced]
    if chosen.names and not found:
        raise NoDataError(f"{path}: no run of {chosen.named} is done yet")
    return found, engine


def of_folders(
    name: str, results: Path, per_step: Path | None = None, aggregated: Path | None = None
) -> Results:
    """A folder of result files and, where given, upstream's {"gates_logs_01": CV} mappings."""
    if not results.is_dir():
        raise FileError(f"{results}: not a folder of results")
    found = read_results(results)
    if not found:
        raise FileError(f"{results}: holds no results (001.json, 002.json, …)")
    forced = {label: result for label, result in found.items() if dose.of_label(label)}
    natural = {label: result for label, result in found.items() if label not in forced}
    return Results(name, natural, _mapping(per_step), _mapping(aggregated), forced)


def narrowed(groups: Sequence[Results], backend: str = "", label: str = "") -> list[Results]:
    """The results of one backend, or of one run of it. NoDataError where there is none."""
    found = [g for g in groups if backend in ("", g.name)]
    if label:
        found = [
            replace(g, by_label={label: g.by_label[label]}) for g in found if label in g.by_label
        ]
    if not found:
        known = ", ".join(f"{g.name} ({len(g.by_label)} runs)" for g in groups)
        raise NoDataError(
            f"no results of {'/'.join(filter(None, (backend, label)))}; there are {known}"
        )
    return found


def iqr_outliers(values: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Beyond 1.5 interquartile ranges from the quartiles (Tukey's fences, linear quartiles)."""
    if not len(values):
        return np.zeros(0, dtype=bool)
    low, high = np.percentile(values, [25, 75])
    reach = IQR_FACTOR * (high - low)
    return np.asarray((values < low - reach) | (values > high + reach))


def number(value: Any) -> float | None:
    """A finite number as a float, else None."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number beyond every float
        return None


def _mapping(file: Path | None) -> dict[str, float]:
    """{"gates_logs_01": CV} → {"001": CV}; labels as the results have them."""
    if file is None:
        return {}
    return {
        _label(name): cv
        for name, value in files.read_json(file).items()
        if (cv := number(value)) is not None
    }


def _label(name: str) -> str:
    """`gates_logs_01` and `gates_logs_001` are dataset 001; `gates_logs_001-r2` its second
    repeat."""
    index, dash, repeat = name.removeprefix("gates_logs_").partition("-")
    return index.zfill(3) + dash + repeat


def _if_there(file: Path) -> Path | None:
    return file if file.is_file() else None
