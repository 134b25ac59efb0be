"""Predicted against measured excess CV²: a panel for each phase."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from core.analysis import foretold
from core.analysis.foretold import PHASES, Foretold
from core.analysis.results import Results
from core.errors import NoDataError
from core.plots import palette
from core.plots.figure import Curve, Points, Series


def panels(groups: Sequence[Results], engine: str = "") -> list[Series]:
    """NoDataError where nothing was predicted, or none of it measured."""
    found = [one for group in groups for one in foretold.of(group)]
    drawn = [
        _panel(phase, own, engine)
        for phase in PHASES
        if (own := [one for one in found if one.phase == phase])
    ]
    if not drawn:
        raise NoDataError(
            "no result has a predicted and a measured excess CV²; gatescope predict --run RUN_DIR"
            " predicts"
        )
    return drawn


def _panel(phase: str, found: Sequence[Foretold], engine: str) -> Series:
    places = palette.places([one.backend for one in found])
    points = tuple(
        Points(
            f"{one.backend}, {one.mode}",
            one.datasets,
            one.predicted,
            one.measured,
            np.zeros(len(one.datasets), np.bool_),
            one.ends if np.isfinite(one.ends).any() else None,
            place=places[one.backend],
        )
        for one in found
    )
    values = np.concatenate([v for one in found for v in (one.predicted, one.measured)])
    ends = np.array([values.min(), values.max()])
    return Series(
        f"Predicted and measured excess CV²: {phase}",
        "predicted excess CV²",
        "measured excess CV²",
        points,
        engine,
        f"n = {sum(len(one.datasets) for one in found)}",
        (Curve("as predicted", ends, ends, palette.FIT, "fit"),),
    )
