"""Results joined with their imbalance: what plots, tables and exports are made of."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from core import files
from core.errors import FileError, NoDataError
from core.experiment import dose, plan
from core.routing import upstream as gate_names
from core.routing.imbalance import Imbalance
from core.rundir import about as run_json
from core.rundir import result
from core.rundir.result import Result
from core.rundir.selection import ALL, Selection
from core.stats.starts import Side

NAMES = {
    "mean_ttft_ms": ("TTFT", "ms"),
    "mean_tpot_ms": ("TPOT", "ms"),
    "output_throughput": ("throughput", "tok/s"),
}
IQR_FACTOR = 1.5


@dataclass(frozen=True, slots=True)
class Results:
    """One backend's results by label, with the CVs of its routing by the same labels where they are
    known.

    `by_label` holds the runs whose routing was natural, `forced` those whose routing was forced to
    a dose, `replayed` those that replayed a recorded run: never mixed. `unreadable`: label → why a
    file is no result. `impossible`: label → what was NaN, infinite, negative or ambiguous, and so
    is unknown.
    """

    name: str
    by_label: dict[str, Result]
    per_step: dict[str, float]
    aggregated: dict[str, float]
    forced: dict[str, Result] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    impossible: dict[str, list[str]] = field(default_factory=dict)
    replayed: dict[str, Result] = field(default_factory=dict)

    def of(self, chosen: Selection) -> Results:
        """The same of the chosen datasets alone."""
        return Results(
            self.name,
            chosen.of(self.by_label),
            chosen.of(self.per_step),
            chosen.of(self.aggregated),
            chosen.of(self.forced),
            chosen.of(self.unreadable),
            chosen.of(self.impossible),
            chosen.of(self.replayed),
        )

    @property
    def imposed(self) -> dict[str, Result]:
        """The runs whose routing was not the model's own."""
        return {**self.forced, **self.replayed}

    @property
    def measured(self) -> dict[str, Imbalance]:
        """Label → imbalance of the natural runs whose routing was recorded."""
        return {
            label: one.measured_imbalance
            for label, one in self.by_label.items()
            if one.measured_imbalance
        }

    @property
    def routed(self) -> dict[str, Imbalance]:
        """The same, with repeats of a dataset whose routing was identical once: where answers are
        greedy, another repeat says nothing new of the router."""
        first: dict[tuple[object, ...], str] = {}
        for label, found in self.measured.items():
            alike = (found.tokens, *found.expert_loads) if found.expert_loads else (label,)
            first.setdefault((plan.dataset_of(label), *alike), label)
        return {label: self.measured[label] for label in first.values()}

    def by_start(self, measure: str) -> Side:
        """Start → dataset → a value a repeat of the natural runs: of a figure of the results, or a
        measure of the routing such as `excess_cv` or `busiest_rank.active_experts`."""
        found: dict[int, dict[str, list[float]]] = {}
        for label, one in self.by_label.items():
            value = one.number(measure)
            if value is None:
                value = _measured(one, measure)
            if value is not None:
                own = found.setdefault(one.start or 1, {})
                own.setdefault(plan.dataset_of(label), []).append(value)
        return {start: found[start] for start in sorted(found)}

    def x(self, label: str, axis: str) -> float | None:
        """The imbalance of one result: "excess" (of CV², signed), "per-step", "aggregated",
        "predicted" or "predicted-work"; None where unknown."""
        if axis == "predicted":
            return self.by_label[label].imbalance_score
        if axis == "predicted-work":
            return self.by_label[label].predicted_work
        if axis == "excess":
            return self.by_label[label].excess_squared
        return (self.per_step if axis == "per-step" else self.aggregated).get(label)


def _measured(one: Result, measure: str) -> float | None:
    value: Any = one.measured_imbalance
    for name in measure.split("."):
        value = getattr(value, name, None)
    return value if isinstance(value, int | float) else None


def of_run_directory(path: Path, chosen: Selection = ALL) -> tuple[list[Results], str]:
    """Every backend's results of the chosen datasets, in the order that they were run, and the
    engine's name.

    FileError if `path` is no run directory; NoDataError if some datasets are chosen and none of
    them has a result.
    """
    about = run_json.read(path)
    found = [
        of_folders(
            name,
            path / name / "results_json",
            _if_there(path / f"{name}_real_imbalance.json"),
            _if_there(path / f"{name}_real_imbalance_aggregated.json"),
        )
        for name in about.backends
        if (path / name / "results_json").is_dir()
    ]
    found = [own for group in found if (own := group.of(chosen)).by_label or own.imposed]
    if chosen.names and not found:
        raise NoDataError(f"{path}: no run of {chosen.named} is done yet")
    return found, about.engine


def of_folders(
    name: str, folder: Path, per_step: Path | None = None, aggregated: Path | None = None
) -> Results:
    """A folder of result files and, where given, upstream's {"gates_logs_01": CV} mappings.
    NoDataError if the folder holds no result; FileError if it is none, or holds only files that
    cannot be read."""
    if not folder.is_dir():
        raise FileError(f"{folder}: not a folder of results")
    found, unreadable, impossible = result.read_all(folder)
    if not found and unreadable:
        label, why = next(iter(unreadable.items()))
        raise FileError(f"{folder / label}.json: {why}")
    if not found:
        raise NoDataError(f"{folder}: holds no results (001.json, 002.json, …)")
    imposed = {label: one for label, one in found.items() if dose.of_label(label)}
    replayed = {label: one for label, one in imposed.items() if dose.is_replay(label)}
    forced = {label: one for label, one in imposed.items() if label not in replayed}
    natural = {label: one for label, one in found.items() if label not in imposed}
    per_step_cvs, per_step_odd = _mapping(per_step)
    aggregated_cvs, aggregated_odd = _mapping(aggregated)
    for label, phrase in {**per_step_odd, **aggregated_odd}.items():
        impossible.setdefault(label, []).append(phrase)
    return Results(
        name, natural, per_step_cvs, aggregated_cvs, forced, unreadable, impossible, replayed
    )


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


def _mapping(file: Path | None) -> tuple[dict[str, float], dict[str, str]]:
    """{"gates_logs_01": CV} → {"001": CV}, labels as the results have them; and a phrase for each
    label whose CV is impossible, or stands there twice."""
    if file is None:
        return {}, {}
    by_label: dict[str, dict[str, float]] = defaultdict(dict)
    for name, cv in files.read_by(file, _decode_mapping).items():
        if cv is not None:
            by_label[gate_names.label(name)][name] = cv
    odd = {label: phrase for label, cvs in by_label.items() if (phrase := _wrong(cvs))}
    return {
        label: next(iter(cvs.values())) for label, cvs in by_label.items() if label not in odd
    }, odd


def _decode_mapping(data: bytes) -> dict[str, float | None]:
    try:
        return msgspec.json.decode(data, type=dict[str, float | None])
    except msgspec.ValidationError:
        raise
    except files.NOT_JSON:
        loose = files.with_constants(data)
        if loose is None:
            raise
    return msgspec.convert(loose, dict[str, float | None])


def _wrong(cvs: dict[str, float]) -> str:
    """Why these CVs of one dataset, by the names that they have in a file, are unknown; empty if
    they are not."""
    if len(set(cvs.values())) > 1:
        return f"CV stands there as {' and '.join(cvs)}, with different values"
    name, cv = next(iter(cvs.items()))
    return "" if math.isfinite(cv) and cv >= 0 else f"CV of {name} is {json.dumps(cv)}"


def _if_there(file: Path) -> Path | None:
    return file if file.is_file() else None
