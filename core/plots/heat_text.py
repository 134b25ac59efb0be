"""A HeatMap → rows of text: numbers where they fit, else shades; the hottest value where several
share a cell."""

from __future__ import annotations

import numpy as np

from core.plots import palette
from core.plots.figure import HeatMap
from core.plots.folding import each, folded, span
from core.stats.arrays import Floats

NUMBER_CELL = 6  # a shade and a number such as 1.25
HEAT_256 = (17, 24, 240, 242, 244, 144, 179, 221)  # palette.HEAT in a terminal of 256 colours
BRIGHT_FROM = 5  # these need dark letters


def rows(figure: HeatMap, columns: int, room: int, *, colour: bool) -> list[str]:
    """At most `room` rows: names of the columns, a line a row, and the scale."""
    height, width = figure.values.shape
    down = each(height, room - 2)
    margin = max(len(span(i, down, height)) for i in range(0, height, down)) + 1
    cell = NUMBER_CELL if width * NUMBER_CELL <= columns - margin else 1
    across = each(width, (columns - margin) // cell)
    cells = folded(folded(figure.values, down, 0), across, 1)
    top = float(figure.values.max(initial=0.0)) or 1.0
    names = [span(i * down, down, height) for i in range(len(cells))]
    body = [
        f"{name:>{margin - 1}} {_row(line, top, cell, colour=colour)}"
        for name, line in zip(names, cells, strict=True)
    ]
    return [
        _column_names(figure, width, cell, across, margin),
        *body,
        _scale(figure, top, colour=colour),
    ]


def _row(values: Floats, top: float, cell: int, *, colour: bool) -> str:
    return "".join(_cell(float(value), top, cell, colour=colour) for value in values)


def _cell(value: float, top: float, cell: int, *, colour: bool) -> str:
    share = min(value / top, 1.0)
    shade = palette.SHADES[min(int(share * len(palette.SHADES)), len(palette.SHADES) - 1)]
    text = f" {value:4.2f} "[:NUMBER_CELL] if colour else f"{shade}{value:4.2f} "
    if cell == 1:
        text = " " if colour else shade
    return _coloured(text, share) if colour else text


def _coloured(text: str, share: float) -> str:
    level = min(int(share * len(HEAT_256)), len(HEAT_256) - 1)
    letters = 16 if level >= BRIGHT_FROM else 231
    return f"\x1b[38;5;{letters};48;5;{HEAT_256[level]}m{text}\x1b[0m"


def _column_names(figure: HeatMap, width: int, cell: int, across: int, margin: int) -> str:
    if cell == NUMBER_CELL:
        return " " * margin + "".join(f" {i:<{cell - 1}}" for i in range(width)).rstrip()
    shared = f", hottest of {across} in a cell" if across > 1 else ""
    return f"{'':>{margin}}{figure.x_label} 0 … {width - 1}{shared}"


def _scale(figure: HeatMap, top: float, *, colour: bool) -> str:
    steps = np.linspace(0, 1, len(HEAT_256), endpoint=False) + 0.5 / len(HEAT_256)
    colours = "".join(_coloured(" ", float(s)) for s in steps)
    return f"0 {colours if colour else palette.SHADES.strip()} {top:.2f}  {figure.unit}"
