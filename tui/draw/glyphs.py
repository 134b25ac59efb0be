"""How states look: always a symbol and a word; and the table that turns every symbol into ASCII."""

from __future__ import annotations

import re

from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

STATES: dict[str, tuple[str, str]] = {  # word → symbol, role
    "queued": ("·", "dim"),
    "starting": ("~", "warn"),
    "running": ("▶", "note"),
    "done": ("✓", "ok"),
    "finished": ("✓", "ok"),
    "failed": ("!", "bad"),
    "cancelled": ("×", "dim"),
    "resumed": ("↻", "note"),
    "ready": ("●", "ok"),
    "stopping": ("◌", "warn"),
    "stopped": ("○", "dim"),
    "cut off": ("!", "bad"),
    "not started": ("·", "dim"),
    "engine gone": ("!", "bad"),
    "reading": ("~", "warn"),
}

SYMBOLS = ("·▶✓×↻●○◌–…▲▼→←↑≥≤≠²±°🔎■◆△□◇Δ", ".>+x@*o%-~^v><^>=!2~ ?#+A0vd")
BLOCKS = ("▁▂▃▄▅▆▇█░▒▓▏▎▍▌▐▕▊▉", "_.,-=+*#.:%||||||||")
RULES = ("│┃║╎┆┊─━═╌┄┈▔╴╶╸╺", "||||||-----------")
CORNERS = ("┌┐└┘├┤┬┴┼╭╮╰╯╔╗╚╝┏┓┗┛", "+++++++++++++++++++++")
ASCII = str.maketrans(
    *("".join(part) for part in zip(SYMBOLS, BLOCKS, RULES, CORNERS, strict=True))
)

BRAILLE = re.compile("[\u2800-\u28ff]")


def ascii_only(text: str) -> str:
    """`text` in ASCII, cell for cell."""
    if text.isascii():
        return text
    return BRAILLE.sub(":", text.translate(ASCII)).encode("ascii", "replace").decode()


class AsciiFilter(LineFilter):
    """Last before the terminal: whatever a widget drew, only ASCII leaves."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        return [
            s if s.text.isascii() else Segment(ascii_only(s.text), s.style, s.control)
            for s in segments
        ]
