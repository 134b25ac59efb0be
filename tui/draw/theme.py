"""Colours: Okabe-Ito, which colour-blind readers can distinguish, and the roles of text in it."""

from __future__ import annotations

from functools import cache

from rich.style import Style
from textual.theme import Theme

from core.plots.palette import HEAT, HEAT_DARK

BLUE, SKY, GREEN = "#0072B2", "#56B4E9", "#009E73"
ORANGE, VERMILLION, YELLOW, PURPLE = "#E69F00", "#D55E00", "#F0E442", "#CC79A7"

DARK = Theme(
    name="gatescope",
    primary=SKY,
    secondary=BLUE,
    accent=ORANGE,
    foreground="#dfe3e8",
    background="#0f1317",
    surface="#171c22",
    panel="#222a33",
    success=GREEN,
    warning=ORANGE,
    error=VERMILLION,
    dark=True,
)
LIGHT = Theme(
    name="gatescope-light",
    primary=BLUE,
    secondary=SKY,
    accent=VERMILLION,
    foreground="#1c2126",
    background="#f7f7f5",
    surface="#ececea",
    panel="#dcdcda",
    success="#00684c",
    warning="#8a5f00",
    error="#a84a00",
    dark=False,
)

# By a backend's place in core.plots.palette: the role of its name, its points and its outliers.
BACKENDS = ("a", "b", "c", "d")
MARKS = ("●", "▲", "■", "◆")
HOLLOW = ("○", "△", "□", "◇")

_DARK = {
    "dim": Style(color="#8b949e"),
    "ok": Style(color="#2fc79a"),
    "warn": Style(color=ORANGE),
    "bad": Style(color="#f0803c", bold=True),
    "note": Style(color=SKY),
    "a": Style(color=SKY),
    "b": Style(color="#f0803c"),
    "c": Style(color="#2fc79a"),
    "d": Style(color=PURPLE),
}
_LIGHT = {
    "dim": Style(color="#5c646c"),
    "ok": Style(color="#00684c"),
    "warn": Style(color="#8a5f00"),
    "bad": Style(color="#a84a00", bold=True),
    "note": Style(color=BLUE),
    "a": Style(color=BLUE),
    "b": Style(color="#a84a00"),
    "c": Style(color="#00684c"),
    "d": Style(color="#8c3f6e"),
}
_BOTH = {
    "": Style(),
    "strong": Style(bold=True),
    "head": Style(bold=True, underline=False),
    "key": Style(bold=True, reverse=True),
    **{
        f"heat{i}": Style(color="#ffffff" if i in HEAT_DARK else "#101010", bgcolor=c)
        for i, c in enumerate(HEAT)
    },
}


@cache
def roles(theme: str) -> dict[str, Style]:
    """Role → style, in the theme of that name."""
    return _BOTH | (_LIGHT if theme == LIGHT.name else _DARK)
