"""Keys that come in one burst, as behind a slow line, act in their order."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support.staged import shown, stage

from core.experiment.control import Add
from tui.screens.choice import Choice
from tui.screens.log import ServerScreen
from tui.screens.past import PastRuns
from tui.screens.picker import Picker
from tui.widgets.live import Live
from tui.widgets.queue import Queue


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def test_marks_of_past_runs() -> None:
    async def try_it() -> None:
        session = stage(Path(), "finished")
        stage(Path(), "failed")
        async with shown(session) as screen:
            await screen.press("b")
            await screen.until(lambda: isinstance(screen.app.screen, PastRuns))
            await screen.burst("space", "j", "space")
            await screen.until(lambda: screen.text.count("[x]") == 2)
            await screen.burst("k", "space", "down", "space")
            await screen.until(lambda: screen.text.count("[ ]") == 2)

    asyncio.run(try_it())


def test_panes_and_what_is_typed() -> None:
    """Letters behind `/` are typed, not done: `a` would add, `R` would retry."""

    async def try_it() -> None:
        session = stage(Path(), "running")
        async with shown(session, 80, 24) as screen:
            queue = screen.app.query_one(Queue)
            await screen.burst("2", "1", "g", "j", "j", "2", "j", "1", "slash", *"Rall2")
            await screen.until(lambda: queue.filter == "Rall2")
            assert len(screen.app.screen_stack) == 1
            await screen.burst("escape", "1", "G", "2", "tab", "2")
            await screen.until(lambda: screen.app.active is screen.app.query_one(Live))
            assert screen.app.pinned == queue.listed()[-1]
            assert not session.sent

            await screen.burst("1", "escape", "l")
            await screen.until(lambda: isinstance(screen.app.screen, ServerScreen))
            await screen.burst("slash", *"ready", "enter", "x")
            await screen.until(lambda: "'ready'" in screen.text)

    asyncio.run(try_it())


def test_the_picker() -> None:
    async def try_it() -> None:
        session = stage(Path(), "running")
        async with shown(session) as screen:
            await screen.press("a")
            await screen.until(lambda: isinstance(screen.app.screen, Picker))
            await screen.burst(*"003", "space", "enter")
            await screen.until(lambda: isinstance(screen.app.screen, Choice))
            await screen.press("e")
            await screen.until(lambda: session.sent == [Add(["003"], ["baseline", "all2all"])])

    asyncio.run(try_it())
