"""Colours and marks, the same in every plot: Okabe-Ito, which colour-blind readers can distinguish;
marks that need no colour.

A place in a palette belongs to one backend (or phase) throughout; after the last place the palette
repeats.
"""

from __future__ import annotations

from typing import Literal

Stroke = Literal["line", "dotted", "fit", "steps", "bars", "doses"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # blue, vermillion, green, purple
TERMINAL_COLOURS = (74, 208, 36, 175)  # the nearest of 256 that read on dark and on light
PNG_MARKS = ("o", "x", "s", "^")
PNG_HOLLOW = ("o", "X", "s", "^")  # an x has no inside
TEXT_MARKS = ("o", "x", "#", "^")
TEXT_HOLLOW = ("O", "X", "%", "A")  # letters have no inside either: larger
DOSE_MARKS = ("o", "X", "s", "^", "D", "P", "v", "*", "<", ">")
PNG_DASHES: tuple[str | tuple[int, tuple[int, ...]], ...] = (
    "-",
    (0, (5, 2)),
    (0, (5, 2, 1, 2)),
    (0, (2, 1)),
)
TEXT_STROKES: dict[Stroke, str] = {
    "line": "ox#^",
    "steps": "ox#^",
    "bars": "ox#^",
    "doses": "ox#^*+%@=&",  # a mark per curve
    "dotted": ".,:'",
    "fit": "-=~+",
}
# Eight steps of cividis, from little to much: lightness rises evenly, so grey print and
# colour-blind eyes read it too.
HEAT = ("#002e6a", "#32436d", "#535a6d", "#6f7073", "#8c8878", "#aba072", "#cdbb63", "#f0d846")
SHADES = " ░▒▓█"
HEAT_MAP = "cividis"


def colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def terminal_colour(place: int) -> int:
    return TERMINAL_COLOURS[place % len(TERMINAL_COLOURS)]


def png_mark(place: int) -> str:
    return PNG_MARKS[place % len(PNG_MARKS)]


def png_hollow(place: int) -> str:
    """The mark of points beyond 1.5 IQR."""
    return PNG_HOLLOW[place % len(PNG_HOLLOW)]


def text_hollow(place: int) -> str:
    return TEXT_HOLLOW[place % len(TEXT_HOLLOW)]


def text_mark(place: int) -> str:
    return TEXT_MARKS[place % len(TEXT_MARKS)]


def text_stroke(stroke: Stroke, place: int) -> str:
    """The character that a curve is drawn with in a terminal."""
    marks = TEXT_STROKES[stroke]
    return marks[place % len(marks)]


def dose_mark(place: int) -> str:
    """The mark of a curve of doses, in print."""
    return DOSE_MARKS[place % len(DOSE_MARKS)]
