"""The pictures in docs/ show the screens as they are. To make them anew, over the recording in
`pictured/`: GATESCOPE_GOLDEN=update pytest tests/tui/test_pictures.py."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.cells import cell_len
from support.staged import UPDATE, played, shown

DOCS = Path(__file__).parents[2] / "docs"
RECORDED = Path(__file__).parent / "pictured" / "load-imbalance"
CELL = 12.2  # width of a terminal's cell in Rich's SVG
PICTURES = {"tui-live": (140, 45, ()), "tui-imbalance": (140, 25, ("4",))}


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Times of events are shown in local time; the run directory by its relative path."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    monkeypatch.chdir(tmp_path)
    yield
    monkeypatch.undo()
    time.tzset()


def drawn(svg: str) -> str:
    """The text of the terminal in an SVG of Rich's, row by row; what has no text is blank."""
    rows: dict[float, str] = {}
    for text in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):
        if "clip-path" in text.attrib:  # else it is the window's title
            column, y = round(float(text.attrib["x"]) / CELL), float(text.attrib["y"])
            row = rows.get(y, "")
            rows[y] = row + " " * (column - cell_len(row)) + (text.text or "").replace("\xa0", " ")
    return "\n".join(rows[y].rstrip() for y in sorted(rows)) + "\n"


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_shows_the_screen_as_it_is(name: str) -> None:
    width, height, keys = PICTURES[name]

    async def look() -> tuple[str, str]:
        session = played(RECORDED, Path(), live=True)
        async with shown(session, width, height) as screen:
            await screen.press(*keys)
            await screen.settle()
            return screen.text, screen.app.export_screenshot(title="gatescope")

    text, made = asyncio.run(look())
    file = DOCS / f"{name}.svg"
    if UPDATE:
        file.write_text(made)
    assert drawn(made) == text  # the comparison sees all of a screen
    assert drawn(file.read_text()) == text, f"{file} is old: make it with GATESCOPE_GOLDEN=update"
