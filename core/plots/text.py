"""A figure → text for a terminal, with legend and notes above the plot so that they cover no point.
plotext is imported where it draws."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from core.plots import bars_text, heat_text, palette, ticks
from core.plots.figure import Bars, Curve, Figure, HeatMap, Points, Series
from core.stats.arrays import Floats

ANSI = re.compile(r"\x1b\[[0-9;]*m")
MIN_COLUMNS, MIN_ROWS = 20, 9
LEAST_PLOT = 8  # rows
CLOUD = "·"
UNJOINED = ("bars", "ticks")  # strokes
GAP = "   "
Entry = tuple[str, str, int]  # of a legend: mark, name, place in the palette


def draw(figure: Figure, columns: int, rows: int, *, colour: bool) -> str:
    """The figure as text of at most `columns` × `rows` cells, its heading included; ANSI colours if
    `colour`."""
    if columns < MIN_COLUMNS or rows < MIN_ROWS:
        return f"{figure.title}: needs {MIN_COLUMNS}×{MIN_ROWS} cells"
    head = _heading(figure, columns, colour=colour)
    if rows - len(head) < LEAST_PLOT:  # the plot matters more than its note
        head = _heading(replace(figure, note="", engine=""), columns, colour=colour)
    room = max(rows - len(head), MIN_ROWS - 3)
    match figure:
        case HeatMap():
            body = heat_text.rows(figure, columns, room, colour=colour)
        case Bars():
            body = bars_text.rows(figure, columns, room, colour=colour)
        case Series():
            body = _plot(figure, columns, room, colour=colour)
    return "\n".join([*head, *body])


def legend(series: Series) -> list[Entry]:
    """Groups with how many points are drawn, then curves."""
    points = []
    for group in series.groups:
        if group.drawn.any():
            points.append((_mark(group), group.in_legend, group.place))
        if group.hollow.any():
            mark = palette.text_hollow(group.place)
            points.append((mark, group.hollow_in_legend, group.place))
    return [*points, *((_stroke(c), c.name, c.place) for c in series.curves)]


def _stroke(curve: Curve) -> str:
    return palette.text_stroke(curve.stroke, curve.place if curve.mark is None else curve.mark)


def _mark(group: Points) -> str:
    return CLOUD if group.is_cloud else palette.text_mark(group.place)


def _heading(figure: Figure, columns: int, *, colour: bool) -> list[str]:
    axes = (
        f"{figure.y_label} (up) against {figure.x_label} (right)"
        if isinstance(figure, Series)
        else ""
    )
    facts = [figure.note, f"engine: {figure.engine}" if figure.engine else ""]
    lines = [figure.title, axes, *_joined([part for part in facts if part], " · ", columns)]
    wrong = textwrap.wrap(figure.invalid, columns)
    rows = [_red(row) for row in wrong] if colour else wrong
    rows += [row for line in lines for row in textwrap.wrap(line, columns)]
    return (
        [*rows, *_legend_rows(legend(figure), columns, colour=colour)]
        if isinstance(figure, Series)
        else rows
    )


def _red(row: str) -> str:
    return f"\x1b[1;38;5;{palette.INVALID[1]}m{row}\x1b[0m"


def _joined(parts: Sequence[str], between: str, columns: int) -> list[str]:
    """Parts in rows of at most `columns` cells, none broken that fits by itself."""
    rows: list[str] = []
    for part in parts:
        if rows and len(rows[-1]) + len(between) + len(part) <= columns:
            rows[-1] += between + part
        else:
            rows.append(part)
    return rows


def _legend_rows(entries: Sequence[Entry], columns: int, *, colour: bool) -> list[str]:
    plain = [f"{mark} {name}" for mark, name, _ in entries]
    rows = _joined(plain, GAP, columns)
    if not colour:
        return rows
    places = dict(zip(plain, (place for _, _, place in entries), strict=True))
    return [GAP.join(_painted(part, places[part]) for part in row.split(GAP)) for row in rows]


def _painted(text: str, place: int) -> str:
    return f"\x1b[38;5;{palette.terminal_colour(place)}m{text}\x1b[0m"


def _plot(series: Series, columns: int, rows: int, *, colour: bool) -> list[str]:
    import plotext

    xs, ys = series.shown
    if not len(xs):
        return ["no points"]
    plotext.terminal.limit(False, False)
    figure = plotext.figure
    figure.clear()
    figure.plot_size(columns, rows)
    figure.theme("simple" if colour else "colorless")
    for group in series.groups:
        if group.is_cloud:
            _draw_points(plotext, group, series)
    for curve in series.curves:
        _draw_reach(plotext, curve)
    for curve in series.curves:
        if curve.stroke not in UNJOINED:
            _draw_curve(plotext, curve, series)
    for group in series.groups:
        if not group.is_cloud:
            _draw_points(plotext, group, series)
        _draw_off_scale(plotext, group, float(ys.max()), series)
    for curve in series.curves:
        if curve.stroke in UNJOINED:
            _draw_curve(plotext, curve, series)
    _set_ruler(figure.ruler("x"), xs, columns // 9, log=series.log_x)
    _set_ruler(figure.ruler("y"), ys, rows // 3, log=False)
    drawn = str(figure.build().string()).rstrip("\n")
    return [row.rstrip() for row in (drawn if colour else ANSI.sub("", drawn)).split("\n")]


def _draw_curve(plotext: Any, curve: Curve, series: Series) -> None:
    xs, ys = _stepped(curve) if curve.stroke == "steps" else (curve.x, curve.y)
    signal = _signal(plotext, _along_x(xs, series), ys, _stroke(curve), curve.place)
    plotext.figure.draw(signal if curve.stroke in (*UNJOINED, "doses") else signal.lines())


def _draw_reach(plotext: Any, curve: Curve) -> None:
    """The line that joins doses, and their intervals: under all marks."""
    if curve.stroke != "doses" or curve.low is None or curve.high is None:
        return
    plotext.figure.draw(_signal(plotext, curve.x, curve.y, ".", curve.place).lines())
    for x, low, high in zip(curve.x, curve.low, curve.high, strict=True):
        if np.isfinite(low):
            ends = _signal(plotext, np.array([x, x]), np.array([low, high]), "|", curve.place)
            plotext.figure.draw(ends.lines())


def _draw_points(plotext: Any, group: Points, series: Series) -> None:
    for which, mark in (
        (group.hollow, palette.text_hollow(group.place)),
        (group.full, _mark(group)),
    ):
        if which.any():
            x, y = group.x[which], group.y[which]
            plotext.figure.draw(_signal(plotext, _along_x(x, series), y, mark, group.place))


def _draw_off_scale(plotext: Any, group: Points, top: float, series: Series) -> None:
    """Carets at the upper edge; their values are in the note."""
    if len(group.off_scale):
        x = _along_x(group.x[group.off_scale], series)
        edge = np.full(len(x), top)
        plotext.figure.draw(_signal(plotext, x, edge, palette.CARET, group.place))


def _signal(plotext: Any, x: Floats, y: Floats, mark: str, place: int) -> Any:
    marker = plotext.marker(mark, palette.terminal_colour(place))
    return plotext.figure.signal(x.tolist(), y.tolist(), marker=marker)


def _along_x(x: Floats, series: Series) -> Floats:
    return np.log10(x) if series.log_x else x


def _stepped(curve: Curve) -> tuple[Floats, Floats]:
    """The corners of a staircase that rises at each x."""
    return np.repeat(curve.x, 2)[1:], np.repeat(curve.y, 2)[:-1]


def _set_ruler(ruler: Any, values: Floats, most: int, *, log: bool) -> None:
    low, high = float(values.min()), float(values.max())
    places, labels = ticks.decades(low, high) if log else ticks.even(low, high, max(most, 2))
    at = np.log10(places).tolist() if log else places
    if high > low:
        ruler.lim(*(np.log10([low, high]).tolist() if log else (low, high)))
    ruler.ticks(at, labels)
