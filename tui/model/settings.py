"""What the screen remembers from one time to the next: theme, pace, bell, heights of panes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec
from msgspec import Struct

from core.files import formatted, write_whole

LEAST, MOST = 0.5, 2.5  # times a row's own height


class Settings(Struct, frozen=True):
    """`theme`: "" for the one that suits the terminal. `heights`: times its own height, by row of
    panes."""

    theme: str = ""
    hz: float = 2.0
    bell: bool = True
    heights: dict[int, float] = {}

    def row(self, number: int) -> float:
        return min(max(self.heights.get(number, 1.0), LEAST), MOST)


def file() -> Path:
    """$XDG_CONFIG_HOME/gatescope/tui.json."""
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "gatescope" / "tui.json"


def read(path: Path) -> Settings:
    """The defaults where there is no such file, or one that another program wrote."""
    with contextlib.suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode(path.read_bytes(), type=Settings)
    return Settings()


def write(path: Path, settings: Settings) -> str:
    """Keep them; why that is impossible, "" if it is not."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, formatted(settings))
    except OSError as error:
        return f"{path}: not kept: {error.strerror}"
    return ""
