"""Bars → rows of text: one bar per row, with its interval in numbers and reference levels."""

from __future__ import annotations

import numpy as np

from core.plots import palette
from core.plots.figure import Bars
from core.plots.folding import each, folded, span

LEVELS = "│┆"


def rows(figure: Bars, columns: int, room: int, *, colour: bool) -> list[str]:
    """At most `room` rows."""
    size = each(len(figure.values), room - 1)
    values = folded(figure.values, size, 0)
    names = (
        list(figure.names)
        if size == 1
        else [span(i, size, len(figure.names)) for i in range(0, len(figure.names), size)]
    )
    texts = [_text(figure, i, float(values[i]), size) for i in range(len(values))]
    name_width, text_width = max(map(len, names)), max(map(len, texts))
    width = max(columns - name_width - text_width - 3, 4)
    top = max([float(values.max(initial=0.0)), *(level for _, level in figure.lines), 1e-12])
    bars = [_bar(float(v), top, width, figure) for v in values]
    if colour:
        bars = [f"\x1b[38;5;{palette.terminal_colour(figure.place)}m{bar}\x1b[0m" for bar in bars]
    body = [f"{n:>{name_width}} {bar} {t}" for n, bar, t in zip(names, bars, texts, strict=True)]
    key = "   ".join(
        f"{LEVELS[i % 2]} {level:{figure.form}} {name}"
        for i, (name, level) in enumerate(figure.lines)
    )
    return [*body, key] if key else body


def _bar(value: float, top: float, width: int, figure: Bars) -> str:
    full = round(value / top * (width - 1))
    cells = list("█" * full + " " * (width - full))
    for place, (_, level) in enumerate(figure.lines):
        cells[round(level / top * (width - 1))] = LEVELS[place % 2]
    return "".join(cells)


def _text(figure: Bars, place: int, value: float, size: int) -> str:
    if size > 1 or figure.low is None or figure.high is None or np.isnan(figure.low[place]):
        return f"{value:{figure.form}}"
    low, high = figure.low[place], figure.high[place]
    return f"{value:{figure.form}} [{low:{figure.form}}, {high:{figure.form}}]"
