"""The figures of a run directory by name: for the plot command, the end of a batch, the report and
the terminal UI."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from core.analysis.results import Results
from core.analysis.step_sample import StepSample
from core.errors import NoDataError
from core.plots import foretold, latency, palette, png, routing, scatter, steptime
from core.plots.figure import F, Figure, HeatMap, Series, marked, noted
from core.plots.labels import Axis

if TYPE_CHECKING:
    from core.analysis.findings import Row

OF_STEPS = ("heatmap", "cv-over-time", "step-time")  # drawn from the gate logs
OF_RESULTS = ("ecdf", "rank-load", "prediction")
AXES: tuple[Axis, ...] = ("excess", "per-step", "predicted", "predicted-work")
T = TypeVar("T")
Invalid = Mapping[str, str]  # backend → the rules that make its figures invalid
VALID: Invalid = {}

WHAT_TO_SEE = {
    "scatter": (
        "Each point is a run. Its bars are 95 % intervals: horizontal over blocks of steps, "
        "vertical over requests. A line (Theil-Sen) with its band marks a detected association."
    ),
    "heatmap": (
        "Red cells are experts that the router prefers, blue ones those it leaves idle; white is "
        "an even share. The scale is the same in every heat map."
    ),
    "cv-over-time": (
        "Height above its own noise floor is skew; a fair router would stay on the floor. Prefill "
        "and decode are separate: a step with prompts holds many more tokens, so its floor is "
        "lower. Points of different datasets are not joined."
    ),
    "ecdf": (
        "Further left is faster. Bands cover the whole curve with 95 % confidence if requests are "
        "independent; where they overlap, the backends do not differ significantly."
    ),
    "rank-load": (
        "Every step waits for its busiest rank, whichever that is. Load evens out over a run "
        "(bars) more than within a step (dashed line)."
    ),
    "prediction": (
        "Each point is a dataset; on the line it is as predicted. Bars are what a run of it was "
        "expected to show, 95 %; predictions without bars were taken as known."
    ),
    "step-time": (
        "First as measured, where steps with few tokens are both quick and uneven; then with the "
        "number of tokens held at its mean. Any rise left there is the cost of imbalance; a line "
        "marks a cost that the step model detects."
    ),
}


@dataclass(frozen=True, slots=True)
class Drawn:
    """A PNG of `figure`, what it shows, and how to read it."""

    figure: str
    file: Path
    title: str
    panels: tuple[Figure, ...]
    caption: str = ""


def panels(
    figure: str,
    groups: Sequence[Results],
    samples: Mapping[str, StepSample],
    engine: str,
    invalid: Invalid = VALID,
) -> list[Figure]:
    """A figure of OF_STEPS or OF_RESULTS: one panel per backend or metric, with *INVALID* on those
    that `invalid` says. NoDataError says why there is none."""
    places = palette.places([*(group.name for group in groups), *samples])
    draw: dict[str, Callable[[], Sequence[Figure]]] = {
        "heatmap": lambda: _each(
            samples, invalid, lambda name, s: [routing.heat_map(s, subject(name, s), engine)]
        ),
        "cv-over-time": lambda: _each(
            samples, invalid, lambda name, s: [routing.cv_over_time(s, subject(name, s), engine)]
        ),
        "step-time": lambda: _each(
            samples,
            invalid,
            lambda name, s: steptime.step_time(s, subject(name, s), engine, places[name]),
        ),
        "ecdf": lambda: [
            of_all(latency.ecdf(groups, name, engine), groups, invalid) for name in ("ttft", "tpot")
        ],
        "rank-load": lambda: _each(
            {group.name: group for group in groups},
            invalid,
            lambda name, group: [routing.rank_load(group, engine, place=places[name])],
        ),
        "prediction": lambda: [of_all(p, groups, invalid) for p in foretold.panels(groups, engine)],
    }
    return list(draw[figure]())


def subject(backend: str, sample: StepSample) -> str:
    """`all2all/001`, or `all2all, 50 runs`."""
    return (
        f"{backend}/{sample.labels[0]}"
        if len(sample.labels) == 1
        else f"{backend}, {len(sample.labels)} runs"
    )


def of_all(figure: F, groups: Sequence[Results], invalid: Invalid) -> F:
    """A figure of several backends, with *INVALID* on it where one of them is."""
    return marked(figure, "; ".join(filter(None, (invalid.get(group.name) for group in groups))))


def _each(
    backends: Mapping[str, T], invalid: Invalid, draw: Callable[[str, T], Sequence[Figure]]
) -> Sequence[Figure]:
    drawn: list[Figure] = []
    reasons: list[str] = []
    for name, found in backends.items():
        try:
            drawn += [marked(panel, invalid.get(name, "")) for panel in draw(name, found)]
        except NoDataError as error:
            reasons.append(str(error))
    if not drawn:
        raise NoDataError("; ".join(reasons) or "there is no gate log")
    return drawn


def caption(figure: str, drawn: Sequence[Figure]) -> str:
    """How to read the figure, and its most extreme value."""
    if figure == "heatmap":
        return " ".join(
            [
                WHAT_TO_SEE[figure],
                *(_hottest(panel) for panel in drawn if isinstance(panel, HeatMap)),
            ]
        )
    if figure == "scatter" and not any(
        panel.curves for panel in drawn if isinstance(panel, Series)
    ):
        return f"{WHAT_TO_SEE[figure]} Here none is detected."
    return WHAT_TO_SEE[figure]


def _hottest(panel: HeatMap) -> str:
    layer, expert = np.unravel_index(int(panel.values.argmax()), panel.values.shape)
    whose = panel.title.partition(": ")[2]
    load = f"{panel.values.max():.2f} × an even share"
    return f"{whose}: expert {expert} of layer {panel.row(int(layer))} is hottest, with {load}."


def draw_all(
    folder: Path,
    groups: Sequence[Results],
    samples: Mapping[str, StepSample],
    engine: str,
    rows: Sequence[Row],
    axes: Sequence[Axis] = AXES,
    note: str = "",
    invalid: Invalid = VALID,
) -> Iterator[Drawn]:
    """Write every figure that has data into `folder`, scatters against `axes`, with `note` appended
    to each figure's own, and *INVALID* where `invalid` says so. OSError as from `png.write`."""
    for metric in scatter.METRICS:
        for axis in axes:
            with contextlib.suppress(NoDataError):  # no run has both values
                drawn = of_all(scatter.series(groups, metric, axis, engine, rows), groups, invalid)
                drawn = noted(drawn, note)
                file = png.write(drawn, folder / f"{metric}-{axis}.png")
                told = caption("scatter", [drawn])
                yield Drawn("scatter", file, drawn.title, (drawn,), told)
    for figure in (*OF_STEPS, *OF_RESULTS):
        with contextlib.suppress(NoDataError):
            made = panels(figure, groups, samples, engine, invalid)
            made = [noted(panel, note) for panel in made]
            file = png.write(made, folder / f"{figure}.png")
            title = "; ".join(panel.title for panel in made)
            yield Drawn(figure, file, title, tuple(made), caption(figure, made))
