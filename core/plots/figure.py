"""What a plot shows, independent of how it is drawn: a Series of points and curves, a HeatMap, or
Bars. Data only.

Every figure has a title, labels with units, `note` (n, and what was left out), the engine it was
measured on, and in `invalid` the rules that say that it does not show what it seems to.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from core.plots.palette import Stroke
from core.stats.arrays import Bools, Floats, Ints

CLOUD_FROM = 300  # points
VALUES = 8  # of points off the scale have theirs beside them


@dataclass(frozen=True, slots=True)
class Points:
    """One backend's points; `labels` name the datasets. `outlier` marks those beyond 1.5 IQR on
    either axis. `place` in the palette: its backend's.

    `far` marks those above the scale, of which only a caret and the value are drawn.
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
    place: int = 0

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
    def off_scale(self) -> Ints:
        """Places of those above the scale, the highest first."""
        above = np.flatnonzero(~self.drawn)
        return above[np.argsort(-self.y[above], kind="stable")]

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
    "doses" the ends of an interval at each point, nan where there is none; "ticks" and "bars" join
    no points. `place` in the palette:
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
    invalid: str = ""

    @property
    def shown(self) -> tuple[Floats, Floats]:
        """All x, and all y within the scale: what the axes have to reach."""
        none = np.zeros(0)
        xs = [g.x for g in self.groups] + [c.x for c in self.curves]
        ys = [g.y[g.drawn] for g in self.groups] + [c.y for c in self.curves]
        ends = [
            e for c in self.curves if c.stroke == "doses" for e in (c.low, c.high) if e is not None
        ]
        return np.concatenate([none, *xs]), np.concatenate(
            [none, *ys, *(e[np.isfinite(e)] for e in ends)]
        )


@dataclass(frozen=True, slots=True)
class HeatMap:
    """`values` [rows, columns], loads over an even share; drawn on one scale, `palette.heat`."""

    title: str
    x_label: str
    y_label: str
    values: Floats
    unit: str
    engine: str = ""
    note: str = ""
    row_numbers: tuple[int, ...] = ()  # what rows are called; empty: counted from 0
    invalid: str = ""

    def row(self, place: int) -> int:
        return self.row_numbers[place] if self.row_numbers else place


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
    invalid: str = ""


Figure = Series | HeatMap | Bars
F = TypeVar("F", bound=Figure)


def noted(figure: F, more: str) -> F:
    """The same with `more` at the end of its note."""
    return replace(figure, note="; ".join(filter(None, (figure.note, more))))


def marked(figure: F, rules: str) -> F:
    """The same with *INVALID* on it, where `rules` are why."""
    return replace(figure, invalid=f"INVALID: {rules}") if rules else figure
