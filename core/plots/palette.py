"""Colours and marks, the same in every plot: Okabe-Ito, which colour-blind readers can distinguish;
marks that need no colour.

The first BACKENDS places belong to backends, by name; the others to phases and fits, so that no
colour means both.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Literal

Stroke = Literal["line", "dotted", "fit", "steps", "bars", "ticks", "doses"]

BACKENDS = 4
OWN_PLACES = {"baseline": 0, "all2all": 1}  # the backends of most experiments
PREFILL, DECODE, FIT = 4, 5, 6
# Blue, vermillion, green, purple; orange, grey, olive.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#4D4D4D", "#8A8A00")
TERMINAL_COLOURS = (74, 208, 36, 175, 178, 245, 142)  # the nearest that read on dark and on light
PNG_MARKS = ("o", "x", "s", "D", "v", "P", "*")
PNG_HOLLOW = ("o", "X", "s", "D", "v", "P", "*")  # an x has no inside
TEXT_MARKS = ("o", "x", "#", "d", "v", "+", "*")
TEXT_HOLLOW = ("O", "X", "%", "D", "V", "&", "@")  # letters have no inside either: larger
CARET = "^"  # a point off the scale, at the edge where it left; no backend's mark
INVALID = ("#B00020", 160)  # of the word that rules put on a picture
DOSE_MARKS = ("o", "X", "s", "^", "D", "P", "v", "*", "<", ">")
PNG_DASHES: tuple[str | tuple[int, tuple[int, ...]], ...] = (
    "-",
    (0, (5, 2)),
    (0, (5, 2, 1, 2)),
    (0, (2, 1)),
    "-",
    (0, (5, 2)),
    (0, (5, 2, 1, 2)),
)
TEXT_STROKES: dict[Stroke, str] = {
    "line": "ox#dv+*",
    "steps": "ox#dv+*",
    "bars": "ox#dv+*",
    "doses": "ox#^*+%@=&",  # a mark per curve
    "ticks": "_-=~_-=",
    "dotted": ".,:'.,:",
    "fit": "-=~+-=~",
}
# ColorBrewer's RdBu, from half an even share to twice it; red and blue are distinguishable to
# colour-blind readers. The scale is the same in every heat map: log2, with 1 in its middle.
HEAT = (
    "#2166ac",
    "#4393c3",
    "#92c5de",
    "#d1e5f0",
    "#f7f7f7",
    "#fddbc7",
    "#f4a582",
    "#d6604d",
    "#b2182b",
)
HEAT_256 = (25, 67, 110, 153, 255, 224, 216, 167, 124)  # the nearest of 256 colours
HEAT_DARK = (0, 1, 7, 8)  # of HEAT: those that need light letters
SHADES = " ░▒▓█"
HEAT_ENDS = (0.5, 2.0)


def heat(load: float) -> float:
    """The place of a load over an even share on the scale of heat maps: 0 to 1, 0.5 if even."""
    low, high = HEAT_ENDS
    share = math.log(max(load, low) / low) / math.log(high / low)
    return min(share, 1.0)


def heat_level(load: float, levels: int = len(HEAT)) -> int:
    """The place of its colour in HEAT, or in a scale of so many `levels`; the middle one is 1."""
    return min(int(heat(load) * levels), levels - 1)


def places(names: Sequence[str]) -> dict[str, int]:
    """Backend → its place: by its name, not by the order of `names`, so that a backend looks the
    same in every picture. Only where two take one place, the later in the alphabet gives way."""
    found = {name: OWN_PLACES[name] for name in names if name in OWN_PLACES}
    for name in sorted({*names} - {*found}):
        first = zlib.crc32(name.encode()) % BACKENDS
        tried = ((first + step) % BACKENDS for step in range(BACKENDS))
        found[name] = next((place for place in tried if place not in found.values()), first)
    return {name: found[name] for name in names}


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
