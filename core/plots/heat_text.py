"""A HeatMap → rows of text: numbers where they fit, else shades; the hottest value where several
share a cell."""

from __future__ import annotations

from core.plots import palette
from core.plots.figure import HeatMap
from core.plots.folding import each, folded, span
from core.stats.arrays import Floats

NUMBER_CELL = 6  # a shade and a number such as 1.25


def rows(figure: HeatMap, columns: int, room: int, *, colour: bool) -> list[str]:
    """At most `room` rows: names of the columns, a line a row, and the scale."""
    height, width = figure.values.shape
    down = each(height, room - 2)
    names = [span(i, down, height, figure.row_numbers) for i in range(0, height, down)]
    margin = max(map(len, names)) + 1
    cell = NUMBER_CELL if width * NUMBER_CELL <= columns - margin else 1
    across = each(width, (columns - margin) // cell)
    cells = folded(folded(figure.values, down, 0), across, 1)
    body = [
        f"{name:>{margin - 1}} {_row(line, cell, colour=colour)}"
        for name, line in zip(names, cells, strict=True)
    ]
    return [
        _column_names(figure, width, cell, across, margin),
        *body,
        _scale(figure, colour=colour),
    ]


def _row(values: Floats, cell: int, *, colour: bool) -> str:
    return "".join(_cell(float(value), cell, colour=colour) for value in values)


def _cell(value: float, cell: int, *, colour: bool) -> str:
    shade = palette.SHADES[palette.heat_level(value, len(palette.SHADES))]
    text = f" {value:4.2f} "[:NUMBER_CELL] if colour else f"{shade}{value:4.2f} "
    if cell == 1:
        text = " " if colour else shade
    return _coloured(text, palette.heat_level(value)) if colour else text


def _coloured(text: str, level: int) -> str:
    letters = 231 if level in palette.HEAT_DARK else 16
    return f"\x1b[38;5;{letters};48;5;{palette.HEAT_256[level]}m{text}\x1b[0m"


def _column_names(figure: HeatMap, width: int, cell: int, across: int, margin: int) -> str:
    if cell == NUMBER_CELL:
        return " " * margin + "".join(f" {i:<{cell - 1}}" for i in range(width)).rstrip()
    shared = f", hottest of {across} in a cell" if across > 1 else ""
    return f"{'':>{margin}}{figure.x_label} 0 … {width - 1}{shared}"


def _scale(figure: HeatMap, *, colour: bool) -> str:
    low, high = palette.HEAT_ENDS
    colours = "".join(_coloured(" ", level) for level in range(len(palette.HEAT_256)))
    return f"≤{low:g} {colours if colour else palette.SHADES} ≥{high:g}  {figure.unit}"
