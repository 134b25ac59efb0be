"""The screen of a sweep: what it shows, and which cell it opens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support.place import Place
from support.staged import GOLDEN, UPDATE
from textual.pilot import Pilot

from bench.sweep import simulated
from core.commands import sweep_batch
from core.experiment.invocation import Invocation
from core.experiment.tables import Backend
from tui.model.sweep import SweepSession
from tui.sweep import SweepScreen

TPOT = {(8, 256): (10.0, 10.1), (8, 2048): (9.0, 9.01), (32, 256): (12.0, 12.1), (32, 2048): ()}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Four cells, one of which has not begun."""
    cells: dict[str, Any] = {}
    settings = {}
    for (seqs, tokens), tpots in TPOT.items():
        slug = f"baseline,max_num_seqs={seqs},max_num_batched_tokens={tokens}"
        config = simulated.config_of([Backend(name="baseline", max_num_seqs=seqs)], starts=2)
        starts = {n: {"001": [tpot]} for n, tpot in enumerate(tpots, 1)}
        cells[slug] = (config, {"baseline": starts} if starts else {})
        settings[slug] = {
            "backends.*.max_num_seqs": seqs,
            "backends.*.max_num_batched_tokens": tokens,
        }
    return simulated.sweep(tmp_path / "s", cells, settings)


@asynccontextmanager
async def shown(
    path: Path, size: tuple[int, int], **options: Any
) -> AsyncIterator[tuple[SweepScreen, Pilot[str]]]:
    app = SweepScreen(SweepSession(path), **options)
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        await app.workers.wait_for_complete()
        await pilot.pause()
        yield app, pilot


def text(app: SweepScreen) -> str:
    # Textual has no public way to the text of a screen.
    strips = app.screen._compositor.render_strips()
    return "\n".join(strip.text.rstrip() for strip in strips) + "\n"


@pytest.mark.parametrize("size", [(80, 24), (140, 45)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_it_shows_the_matrix(sweep: Path, size: tuple[int, int]) -> None:
    async def look() -> str:
        async with shown(sweep, size) as (app, _):
            return text(app)

    file = GOLDEN / f"sweep-{size[0]}x{size[1]}.txt"
    seen = asyncio.run(look())
    if UPDATE:
        file.write_text(seen)
    assert seen == file.read_text(), f"{file} differs; if intended: GATESCOPE_GOLDEN=update"


@pytest.mark.parametrize(
    ("keys", "opened"),
    [
        (["enter"], "baseline,max_num_seqs=8,max_num_batched_tokens=256"),
        (["right", "enter"], "baseline,max_num_seqs=8,max_num_batched_tokens=2048"),
        (["down", "down", "left", "enter"], "baseline,max_num_seqs=32,max_num_batched_tokens=256"),
        (["down", "right", "enter", "q"], None),  # it has not begun
        (["q"], None),
    ],
)
def test_enter_opens_the_cell_under_the_cursor(
    sweep: Path, keys: list[str], opened: str | None
) -> None:
    async def press() -> str | None:
        async with shown(sweep, (140, 45)) as (app, pilot):
            await pilot.press(*keys)
        return app.return_value

    assert asyncio.run(press()) == opened


def test_the_cursor_comes_back_to_the_cell_that_was_open(sweep: Path) -> None:
    at = "baseline,max_num_seqs=32,max_num_batched_tokens=256"

    async def press() -> str | None:
        async with shown(sweep, (80, 24), at=at, ascii=True) as (app, pilot):
            assert text(app).isascii()
            assert f"{at}: done" in text(app)
            await pilot.press("enter")
        return app.return_value

    assert asyncio.run(press()) == at


def test_a_column_that_does_not_fit_is_scrolled_to(sweep: Path) -> None:
    async def look() -> tuple[str, str]:
        async with shown(sweep, (60, 24)) as (app, pilot):
            before = text(app)
            await pilot.press("right")
            await pilot.pause()
            return before, text(app)

    before, after = asyncio.run(look())
    assert "max_num_batched_tokens=2048" not in before
    assert "max_num_batched_tokens=2048" in after
    assert "max_num_batched_tokens=256" not in after.splitlines()[2]
    assert "baseline" in after


def test_a_sweep_is_started_stopped_and_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped within a cell; the process ends, and what is left is run on `r`."""
    place = Place(tmp_path, starts=1, num_prompts=2)
    monkeypatch.chdir(tmp_path)
    axes: dict[str, list[Any]] = {"experiment.output_len": [3, 200]}
    asked = Invocation(only=("001",), backends=("baseline",), out=place.made, axes=axes)
    session = SweepSession(place.made, asked, sweep_batch.planned(asked))
    assert session.read().stage == "not started"
    assert not place.made.exists()
    session.start()
    assert session.read().stage == "running"
    session.stop()
    assert session.read().stage == "stopped"
    session.start()
    while session.is_live():
        time.sleep(0.2)
    assert session.read().stage == "done"
    assert "2 of 2 cells done" in session.read().head
