"""What a plot shows, independent of how it is drawn: a Series of points and curves, a HeatMap, or
Bars. Data only.

Every figure has a title, labels with units, `note` (n, and what was left out) and the engine it was
measured on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from core.plots.palette import Stroke
from core.stats.arrays import Bools, Floats

CLOUD_FROM = 300  # points


@dataclass(frozen=True, slots=True)
class Points:
    """One backend's points; `labels` name the datasets. `outlier` marks those beyond 1.5 IQR on
    either axis.

    `far` marks those off the scale, which are not drawn.
    `x_interval` and `y_interval` [n, 2]: the 95 % intervals, nan where there is none; None where
    none is known.
    """

    name: str
    labels: tuple[str, ...]
    x: Floats
    y: Floats
    outlier: Bools
    x_interval: Floats | None = None
    y_interval: Floats | None = None
    far: Bools | None = None

    @property
    def drawn(self) -> Bools:
        return np.ones(len(self.x), np.bool_) if self.far is None else ~self.far

    @property
    def full(self) -> Bools:
        """Those drawn with a full mark."""
        return self.drawn & ~self.outlier

    @property
    def hollow(self) -> Bools:
        """Those drawn with a hollow one."""
        return self.drawn & self.outlier

    @property
    def in_legend(self) -> str:
        return f"{self.name} (n = {int(self.full.sum()):,})"

    @property
    def hollow_in_legend(self) -> str:
        return f"{self.name}, beyond 1.5 IQR (n = {int(self.hollow.sum()):,})"

    @property
    def is_cloud(self) -> bool:
        """Whether only the density of so many points can be seen: they are drawn faintly and behind
        curves."""
        return int(self.drawn.sum()) > CLOUD_FROM


@dataclass(frozen=True, slots=True)
class Curve:
    """A line through (x, y) [n]; `low` and `high` [n] are its band, or with stroke "bars" or
    "doses" the ends of an interval at each point, nan where there is none. `place` in the palette:
    a backend's own; `mark` where its curves need one each."""

    name: str
    x: Floats
    y: Floats
    place: int
    stroke: Stroke = "line"
    low: Floats | None = None
    high: Floats | None = None
    mark: int | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """Points and curves over two axes."""

    title: str
    x_label: str
    y_label: str
    groups: tuple[Points, ...] = ()
    engine: str = ""
    note: str = ""
    curves: tuple[Curve, ...] = ()
    log_x: bool = False

    @property
    def shown(self) -> tuple[Floats, Floats]:
        """All x and y that are drawn: what the axes have to reach."""
        none = np.zeros(0)
        xs = [g.x[g.drawn] for g in self.groups] + [c.x for c in self.curves]
        ys = [g.y[g.drawn] for g in self.groups] + [c.y for c in self.curves]
        ends = [
            e for c in self.curves if c.stroke == "doses" for e in (c.low, c.high) if e is not None
        ]
        return np.concatenate([none, *xs]), np.concatenate(
            [none, *ys, *(e[np.isfinite(e)] for e in ends)]
        )


@dataclass(frozen=True, slots=True)
class HeatMap:
    """`values` [rows, columns], drawn from 0 to their largest; `unit` says what 1 means."""

    title: str
    x_label: str
    y_label: str
    values: Floats
    unit: str
    engine: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Bars:
    """One bar per name, from 0; `low` and `high` [n]: the 95 % interval, nan where there is none.
    `lines`: reference levels with their meaning; `form`: the format of values."""

    title: str
    x_label: str
    y_label: str
    names: tuple[str, ...]
    values: Floats
    place: int = 0
    low: Floats | None = None
    high: Floats | None = None
    lines: tuple[tuple[str, float], ...] = ()
    form: str = ".2f"
    engine: str = ""
    note: str = ""


Figure = Series | HeatMap | Bars


def noted(figure: Figure, more: str) -> Figure:
    """The same with `more` at the end of its note."""
    return replace(figure, note="; ".join(filter(None, (figure.note, more))))
