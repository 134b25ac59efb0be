"""What the user sets is there the next time, and every theme can be read."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from rich.color import ColorType
from support.staged import shown, stage
from textual.color import Color
from textual.theme import Theme

from tui.draw import theme
from tui.model import settings
from tui.model.settings import Settings


def test_what_is_set_is_there_the_next_time(tmp_path: Path) -> None:
    file = tmp_path / "config" / "tui.json"

    async def set_and_look() -> tuple[Settings, Settings, str]:
        async with shown(stage(tmp_path, "running"), settings_file=file) as screen:
            await screen.press("t", "<", "B", "3", "]", "]")
            set_ = screen.app.settings
        async with shown(stage(tmp_path / "b", "running"), settings_file=file) as screen:
            return set_, screen.app.settings, screen.app.theme

    was, now, worn = asyncio.run(set_and_look())
    assert now == was == Settings(theme="light", hz=1.0, bell=False, heights={0: 1.562})
    assert worn == "light"


@pytest.mark.parametrize("text", ["", "{", '{"hz": "fast"}'])
def test_a_file_that_is_not_ours_is_no_obstacle(tmp_path: Path, text: str) -> None:
    (tmp_path / "tui.json").write_text(text)
    assert settings.read(tmp_path / "tui.json") == Settings()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = settings.write(tmp_path / "file" / "tui.json", Settings())
    assert said.startswith(f"{tmp_path}/file/tui.json: not kept: ")


def brightness(color: Color) -> float:
    """Relative luminance, by WCAG 2."""
    parts = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in color.normalized]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


@pytest.mark.parametrize("worn", [theme.DARK, theme.LIGHT])
def test_borders_stand_out_from_the_background(tmp_path: Path, worn: Theme) -> None:
    async def look() -> tuple[Color, Color]:
        async with shown(stage(tmp_path, "running")) as screen:
            screen.app.theme = worn.name
            await screen.settle()
            pane = screen.app.pane("Servers")
            return pane.styles.border_top[1], pane.background_colors[1]

    border, background = (brightness(color) for color in asyncio.run(look()))
    high, low = max(border, background), min(border, background)
    assert (high + 0.05) / (low + 0.05) > 2.2


def test_the_terminals_own_colours_are_the_only_ones_of_its_theme(tmp_path: Path) -> None:
    async def look() -> set[ColorType]:
        async with shown(stage(tmp_path, "running")) as screen:
            screen.app.theme = theme.TERMINAL.name
            await screen.settle()
            found = set()
            for keys in ("", "question_mark"):
                await screen.press(*filter(None, [keys]))
                for strip in screen.app.screen._compositor.render_strips():
                    for segment in strip:
                        style = segment.style
                        for color in (style.color, style.bgcolor) if style else ():
                            if color is not None:
                                found.add(color.type)
            return found

    assert asyncio.run(look()) <= {ColorType.DEFAULT, ColorType.STANDARD}
