"""Colours: Okabe-Ito, which colour-blind readers can distinguish, and the roles of text in it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from rich.style import Style
from textual.theme import BUILTIN_THEMES, Theme

from core.plots.palette import HEAT, HEAT_DARK

if TYPE_CHECKING:
    from textual.app import App

BLUE, SKY, GREEN = "#0072B2", "#56B4E9", "#009E73"
ORANGE, VERMILLION, YELLOW, PURPLE = "#E69F00", "#D55E00", "#F0E442", "#CC79A7"

DARK = Theme(
    name="dark",
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
    variables={"pane-border": "#4a5561"},
)
LIGHT = Theme(
    name="light",
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
    variables={"pane-border": "#8d949b"},
)
# The terminal's own 16 colours, whatever its user made of them: only its default foreground is
# sure to be seen on its background.
_ANSI = BUILTIN_THEMES["ansi-dark"]
TERMINAL = replace(
    _ANSI, name="terminal", variables={**_ANSI.variables, "pane-border": "ansi_default"}
)
ALL = (DARK, LIGHT, TERMINAL)

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
HEAT_16 = ("blue", "blue", "cyan", "cyan", "white", "yellow", "yellow", "red", "red")
_TERMINAL = {
    "dim": Style(dim=True),
    "ok": Style(color="green"),
    "warn": Style(color="yellow"),
    "bad": Style(color="red", bold=True),
    "note": Style(color="cyan"),
    "a": Style(color="blue"),
    "b": Style(color="red"),
    "c": Style(color="green"),
    "d": Style(color="magenta"),
    **{
        f"heat{i}": Style(color="white" if i in HEAT_DARK else "black", bgcolor=c)
        for i, c in enumerate(HEAT_16)
    },
    **{f"shade{i}": Style(color=c, bgcolor=c) for i, c in enumerate(HEAT_16)},
}
_ALL = {
    "": Style(),
    "strong": Style(bold=True),
    "head": Style(bold=True, underline=False),
    "key": Style(bold=True, reverse=True),
    **{
        f"heat{i}": Style(color="#ffffff" if i in HEAT_DARK else "#101010", bgcolor=c)
        for i, c in enumerate(HEAT)
    },
    # Of a block character: seen where the terminal has no colours.
    **{f"shade{i}": Style(color=c, bgcolor=c) for i, c in enumerate(HEAT)},
}


@cache
def roles(theme: str) -> dict[str, Style]:
    """Role → style, in the theme of that name."""
    return _ALL | {LIGHT.name: _LIGHT, TERMINAL.name: _TERMINAL}.get(theme, _DARK)


def wear(app: App[Any], name: str = "") -> None:
    """Put the theme of that name on; without one, or with one that is none of ours, the one that
    suits the terminal."""
    for one in ALL:
        app.register_theme(one)
    has_16 = app.console.color_system == "standard"
    suits = TERMINAL.name if has_16 else DARK.name
    app.theme = name if name in {one.name for one in ALL} else suits


def after(name: str) -> str:
    """The next theme."""
    names = [one.name for one in ALL]
    return names[(names.index(name) + 1) % len(names)]
