"""The figures of a run directory by name: for the plot command, the end of a batch, the report and
the terminal UI."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from core.analysis.results import Results
from core.analysis.step_sample import StepSample
from core.errors import NoDataError
from core.plots import foretold, latency, png, routing, scatter, steptime
from core.plots.figure import Figure, HeatMap, Series, noted
from core.plots.labels import Axis

if TYPE_CHECKING:
    from core.analysis.findings import Row

OF_STEPS = ("heatmap", "cv-over-time", "step-time")  # drawn from the gate logs
OF_RESULTS = ("ecdf", "rank-load", "prediction")
AXES: tuple[Axis, ...] = ("excess", "per-step", "predicted")

WHAT_TO_SEE = {
    "scatter": (
        "Each point is a run. Its bars are 95 % intervals: horizontal over blocks of steps, "
        "vertical over requests. A line (Theil-Sen) with its band marks a detected association."
    ),
    "heatmap": (
        "Bright cells are experts that the router prefers, dark ones those it leaves idle; 1 is an "
        "even share."
    ),
    "cv-over-time": (
        "A line's height above its own dotted floor is skew; a fair router would stay on the "
        "floor. Prefill and decode are separate: a step with prompts holds many more tokens, so "
        "its floor is lower."
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
    figure: str, groups: Sequence[Results], samples: Mapping[str, StepSample], engine: str
) -> list[Figure]:
    """A figure of OF_STEPS or OF_RESULTS: one panel per backend or metric. NoDataError says why
    there is none."""
    draw: dict[str, Callable[[], Sequence[Figure]]] = {
        "heatmap": lambda: _each(
            samples, lambda name, s: [routing.heat_map(s, subject(name, s), engine)]
        ),
        "cv-over-time": lambda: _each(
            samples, lambda name, s: [routing.cv_over_time(s, subject(name, s), engine)]
        ),
        "step-time": lambda: _each(
            samples, lambda name, s: steptime.step_time(s, subject(name, s), engine)
        ),
        "ecdf": lambda: [latency.ecdf(groups, name, engine) for name in ("ttft", "tpot")],
        "rank-load": lambda: routing.rank_load(groups, engine),
        "prediction": lambda: foretold.panels(groups, engine),
    }
    return list(draw[figure]())


def subject(backend: str, sample: StepSample) -> str:
    """`all2all/001`, or `all2all, 50 runs`."""
    return (
        f"{backend}/{sample.labels[0]}"
        if len(sample.labels) == 1
        else f"{backend}, {len(sample.labels)} runs"
    )


def _each(
    samples: Mapping[str, StepSample], draw: Callable[[str, StepSample], Sequence[Figure]]
) -> Sequence[Figure]:
    drawn: list[Figure] = []
    reasons: list[str] = []
    for name, sample in samples.items():
        try:
            drawn += draw(name, sample)
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
) -> Iterator[Drawn]:
    """Write every figure that has data into `folder`, scatters against `axes`, with `note` appended
    to each figure's own. OSError as from `png.write`."""
    for metric in scatter.METRICS:
        for axis in axes:
            with contextlib.suppress(NoDataError):  # no run has both values
                drawn = noted(scatter.series(groups, metric, axis, engine, rows), note)
                file = png.write(drawn, folder / f"{metric}-{axis}.png")
                told = caption("scatter", [drawn])
                yield Drawn("scatter", file, drawn.title, (drawn,), told)
    for figure in (*OF_STEPS, *OF_RESULTS):
        with contextlib.suppress(NoDataError):
            made = tuple(noted(p, note) for p in panels(figure, groups, samples, engine))
            file = png.write(made, folder / f"{figure}.png")
            title = "; ".join(panel.title for panel in made)
            yield Drawn(figure, file, title, made, caption(figure, made))
