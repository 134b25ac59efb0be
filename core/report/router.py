"""What the report says of the router in numbers: phases apart, experts, layers, and which datasets
skew it most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from core.analysis import results
from core.analysis.results import Results
from core.report.document import Part, Table, Text
from core.report.summary import PHASES
from core.stats import descriptive
from core.terminal import shown

EXTREMES = 5  # datasets at either end, and layers
NOTE = (
    "Medians over runs. Prefill: steps with prompt tokens in them. Hottest expert, entropy (1: even), Gini (0: even): "
    "of a layer's load over the whole run, mean over layers. Dead: experts of all layers that got no token."
)
Json = dict[str, Any]


def parts(groups: Sequence[Results]) -> list[Part]:
    """Tables of every backend that measured its routing; nothing where none did."""
    measured = {group.name: found for group in groups if (found := _measured(group))}
    if not measured:
        return []
    return [
        _phases(measured),
        _experts(measured),
        Text(
            f"{NOTE} {' '.join(_layers(name, list(runs.values())) for name, runs in measured.items())}"
        ),
        _datasets(measured),
    ]


def _measured(group: Results) -> dict[str, Json]:
    return {
        label: found
        for label, result in group.by_label.items()
        if (found := result.get("measured_imbalance"))
    }


def _phases(measured: dict[str, dict[str, Json]]) -> Table:
    forms = {
        "steps": ",.0f",
        "per_step_cv": ".3f",
        "noise_floor": ".3f",
        "excess_cv": ".3f",
        "layer_cv": ".3f",
    }
    forms |= {"rank_imbalance": ".2f"}
    head = [
        "backend",
        "steps",
        "n a run",
        "CV",
        "noise floor",
        "excess CV",
        "layer CV",
        "rank max/mean",
    ]
    rows = []
    for name, runs in measured.items():
        for phase in ("all", *PHASES):
            found = [run if phase == "all" else run.get(phase) or {} for run in runs.values()]
            rows.append(
                [name, phase, *(shown(_median(found, key), form) for key, form in forms.items())]
            )
    return Table(head, rows)


def _experts(measured: dict[str, dict[str, Json]]) -> Table:
    head = [
        "backend",
        "expert max/mean of a step",
        "hottest expert, %",
        "entropy",
        "Gini",
        "dead experts",
    ]
    rows = []
    for name, runs in measured.items():
        found = list(runs.values())
        hottest = _median(found, "hottest_share")
        values = [
            shown(_median(found, "expert_imbalance"), ".2f"),
            shown(hottest and 100 * hottest, ".1f"),
        ]
        values += [shown(_median(found, "entropy"), ".3f"), shown(_median(found, "gini"), ".3f")]
        rows.append([name, *values, shown(_median(found, "dead_experts"), ".0f")])
    return Table(head, rows)


def _layers(name: str, runs: list[Json]) -> str:
    """`baseline: CV by layer 0.41 to 0.66; most in layers 3 (0.66), 7 (0.64); least in 0
    (0.41).`"""
    by_run = [run["layer_cvs"] for run in runs if run.get("layer_cvs")]
    if not by_run or len({len(cvs) for cvs in by_run}) > 1:
        return ""
    cvs = np.median(by_run, axis=0)
    order = np.argsort(-cvs, kind="stable")
    told = [f"{layer} ({cvs[layer]:.2f})" for layer in order]
    most, least = told[:EXTREMES], told[EXTREMES:][-EXTREMES:]
    rest = f"; least in {', '.join(reversed(least))}" if least else ""
    return f"{name}: CV by layer {cvs.min():.2f} to {cvs.max():.2f}; most in layers {', '.join(most)}{rest}."


def _datasets(measured: dict[str, dict[str, Json]]) -> Table:
    """Excess CV with its interval, at both ends of the first backend's order."""
    first = next(iter(measured.values()))
    known = sorted(
        (-cv, label) for label, run in first.items() if (cv := results.number(run.get("excess_cv")))
    )
    labels = [label for _, label in known]
    ends = labels if len(labels) <= 2 * EXTREMES else [*labels[:EXTREMES], *labels[-EXTREMES:]]
    head = ["dataset, by excess CV", *(f"{name} [95 %]" for name in measured)]
    return Table(
        head, [[label, *(_excess(runs.get(label)) for runs in measured.values())] for label in ends]
    )


def _excess(run: Json | None) -> str:
    value = results.number((run or {}).get("excess_cv"))
    if run is None or value is None:
        return "–"
    ends = (run.get("intervals") or {}).get("excess_cv")
    return f"{value:.3f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")


def _median(runs: Sequence[Json], key: str) -> float | None:
    return descriptive.median(results.number(run.get(key)) for run in runs)
