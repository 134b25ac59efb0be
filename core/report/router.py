"""What the report says of the router in numbers: phases apart, experts, layers, and which datasets
skew it most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from core.analysis.results import Results
from core.report.document import heading, table, text
from core.report.summary import PHASES
from core.routing.busiest import BusiestRank
from core.routing.imbalance import Imbalance, Phase
from core.stats.descriptive import median
from core.terminal import shown

TITLE = "The router in numbers"
EXTREMES = 5  # datasets at either end, and layers
NOTE = (
    "Medians over runs; repeats of a dataset with identical routing count once. "
    "Prefill: steps with prompt tokens in them. "
    "Hottest expert, entropy (1: even), Gini (0: even): of a layer's load over the whole run, "
    "mean over layers. Dead: experts, over all layers, that got no token. Counted:"
)

WORK_NOTE = (
    "The busiest rank of a layer, means over steps and layers, medians over runs: the experts "
    "whose weights it reads, the tiles that its kernel computes, the waves in which the GPU takes "
    "them, the rows that pad them, and this work over the busiest rank's under a fair router with "
    "the same tokens (1: nothing is lost or saved)."
)


def parts(groups: Sequence[Results]) -> list[str]:
    """Tables of every backend that measured its routing; nothing where none did."""
    measured = {group.name: found for group in groups if (found := group.measured)}
    if not measured:
        return []
    routed = {group.name: group.routed for group in groups if group.name in measured}
    layers = " ".join(_layers(name, list(runs.values())) for name, runs in routed.items())
    counts = "; ".join(
        f"{name}: {len(routed[name])} of {len(runs)} runs" for name, runs in measured.items()
    )
    return [
        heading(TITLE),
        _phases(routed),
        _experts(routed),
        text(f"{NOTE} {counts}. {layers}"),
        _work(routed),
        text(_kernels(measured)),
        _datasets(routed, measured),
    ]


def _phases(measured: Mapping[str, Mapping[str, Imbalance]]) -> str:
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
            found = (
                list(runs.values())
                if phase == "all"
                else [p for run in runs.values() if (p := run.phase(phase))]
            )
            figures = [shown(_median(found, key), form) for key, form in forms.items()]
            rows.append([name, phase, *figures])
    return table(head, rows)


def _experts(measured: Mapping[str, Mapping[str, Imbalance]]) -> str:
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
            shown(None if hottest is None else 100 * hottest, ".1f"),
        ]
        values += [shown(_median(found, "entropy"), ".3f"), shown(_median(found, "gini"), ".3f")]
        rows.append([name, *values, shown(_median(found, "dead_experts"), ".0f")])
    return table(head, rows)


def _work(measured: Mapping[str, Mapping[str, Imbalance]]) -> str:
    """What the busiest rank of a layer computes in a step."""
    forms = {"active_experts": ".2f", "tiles": ".1f", "first_waves": ".1f", "second_waves": ".1f"}
    forms |= {"work_over_fair": ".3f"}
    head = ["backend", "steps", "active experts", "tiles", "waves, first GEMM", "second GEMM"]
    rows = []
    for name, runs in measured.items():
        for phase in PHASES:
            found = [
                r for run in runs.values() if (p := run.phase(phase)) and (r := p.busiest_rank)
            ]
            figures = [shown(_median(found, key), form) for key, form in forms.items()]
            padded = _median(found, "padded_share")
            figures.insert(-1, shown(None if padded is None else 100 * padded, ".0f"))
            rows.append([name, phase, *figures])
    return table([*head, "padding, % of rows", "work over a fair router's"], rows)


def _kernels(measured: Mapping[str, Mapping[str, Imbalance]]) -> str:
    """Where each backend's tiles come from, or why they are not known."""
    said = []
    for name, runs in measured.items():
        run = next(iter(runs.values()))
        reason = run.busiest_rank.reason if run.busiest_rank else None
        said.append(f"{name}: {reason or run.kernel}.")
    return f"{WORK_NOTE} {' '.join(said)}"


def _layers(name: str, runs: Sequence[Imbalance]) -> str:
    """`baseline: CV by layer 0.41 to 0.66; most in layers 3 (0.66), 7 (0.64); least in 0
    (0.41).`"""
    by_run = [run.layer_cvs for run in runs if run.layer_cvs]
    called = {tuple(run.layer_numbers) or tuple(range(len(run.layer_cvs))) for run in runs}
    if not by_run or len(called - {()}) > 1:
        return ""
    (numbers,) = called - {()}
    cvs = np.median(by_run, axis=0)
    order = np.argsort(-cvs, kind="stable")
    shown_layers = [f"{numbers[layer]} ({cvs[layer]:.2f})" for layer in order]
    most, least = shown_layers[:EXTREMES], shown_layers[EXTREMES:][-EXTREMES:]
    rest = f"; least in {', '.join(reversed(least))}" if least else ""
    between = f"CV by layer {cvs.min():.2f} to {cvs.max():.2f}"
    return f"{name}: {between}; most in layers {', '.join(most)}{rest}."


def _datasets(
    routed: Mapping[str, Mapping[str, Imbalance]], measured: Mapping[str, Mapping[str, Imbalance]]
) -> str:
    """Excess CV with its interval, at both ends of the first backend's order."""
    first = next(iter(routed.values()))
    squares = {label: run.excess_squared for label, run in first.items()}
    known = sorted((-square, label) for label, square in squares.items() if square is not None)
    labels = [label for _, label in known]
    ends = labels if len(labels) <= 2 * EXTREMES else [*labels[:EXTREMES], *labels[-EXTREMES:]]
    head = ["dataset, by excess CV", *(f"{name} [95 %]" for name in measured)]
    return table(
        head, [[label, *(_excess(runs.get(label)) for runs in measured.values())] for label in ends]
    )


def _excess(run: Imbalance | None) -> str:
    if run is None or run.excess_cv is None:
        return "–"
    ends = run.intervals.get("excess_cv")
    return f"{run.excess_cv:.3f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")


def _median(found: Sequence[Imbalance | Phase | BusiestRank], key: str) -> float | None:
    values: list[float | None] = [getattr(one, key) for one in found]
    return median(values)
