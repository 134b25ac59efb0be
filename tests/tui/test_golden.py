"""What each state looks like, as text. After an intended change: GATESCOPE_GOLDEN=update pytest
tests/tui."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.staged import GOLDEN, STAGES, UPDATE, shown, stage

from core.experiment.dose import Dose, Replay
from core.experiment.invocation import Invocation
from core.experiment.plan import Run, label
from core.experiment.state import RunState, Snapshot
from tui.model import session
from tui.model.session import Session

SIZES = ((80, 24), (140, 45), (200, 60), (100, 30), (60, 20))
TABS = {"live": "2", "servers": "3", "imbalance": "4", "plots": "5", "events": "6"}


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Times of events are shown in local time; paths relative to where gatescope was started."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    monkeypatch.chdir(tmp_path)
    yield
    monkeypatch.undo()
    time.tzset()


def agree(name: str, text: str) -> None:
    file = GOLDEN / f"{name}.txt"
    if UPDATE:
        file.write_text(text)
    assert text == file.read_text(), f"{file} differs; if intended: GATESCOPE_GOLDEN=update"


def agree_at_every_size(name: str, session: Session) -> None:
    """One App, resized: as quick as one size."""

    async def look() -> dict[str, str]:
        seen = {}
        async with shown(session, *SIZES[0]) as screen:
            for width, height in SIZES:
                await screen.pilot.resize_terminal(width, height)
                await screen.settle()
                seen[f"{name}-{width}x{height}"] = screen.text
        return seen

    for file, text in asyncio.run(look()).items():
        agree(file, text)


@pytest.mark.parametrize("name", STAGES)
def test_state_looks_as_it_did(name: str) -> None:
    agree_at_every_size(name, stage(Path(), name))


@pytest.mark.parametrize("size", SIZES[:2], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize(("key", "name"), [("enter", "details"), ("question_mark", "help")])
def test_screens_over_the_panes(key: str, name: str, size: tuple[int, int]) -> None:
    async def look() -> str:
        async with shown(stage(Path(), "finished"), *size) as screen:
            await screen.press("1", key)
            await screen.until(lambda: "reading …" not in screen.text)
            return screen.text

    agree(f"{name}-{size[0]}x{size[1]}", asyncio.run(look()))


@pytest.mark.parametrize("pane", ["live", "servers"])
def test_a_maximised_pane_uses_the_room(pane: str) -> None:
    async def look() -> str:
        async with shown(stage(Path(), "gpus"), 140, 45) as screen:
            await screen.press(TABS[pane], "+")
            return screen.text

    agree(f"maximised-{pane}-140x45", asyncio.run(look()))


@pytest.mark.parametrize("tab", TABS)
def test_each_tab_of_a_small_terminal(tab: str) -> None:
    async def look() -> str:
        async with shown(stage(Path(), "running"), 80, 24) as screen:
            await screen.press(TABS[tab])
            return screen.text

    agree(f"tab-{tab}-80x24", asyncio.run(look()))


@pytest.mark.parametrize("size", SIZES[:2], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize(
    ("keys", "name"), [("D", "forced"), ("Di", "forced-by-rank"), ("Dv", "forced-in-words")]
)
def test_forced_routing(keys: str, name: str, size: tuple[int, int]) -> None:
    async def look() -> str:
        async with shown(stage(Path(), "dosed"), *size) as screen:
            await screen.press(*keys)
            await screen.until(lambda: "computing" not in screen.text)
            return screen.text

    agree(f"{name}-{size[0]}x{size[1]}", asyncio.run(look()))


@pytest.mark.parametrize("size", SIZES[:2], ids=lambda s: f"{s[0]}x{s[1]}")
def test_each_figure_of_the_gate_logs(size: tuple[int, int]) -> None:
    async def look() -> list[str]:
        seen = []
        async with shown(stage(Path(), "finished"), *size) as screen:
            await screen.press("5")
            if size[0] > 80:
                await screen.press("+")
            for _ in ("heatmap", "cv-over-time", "step-time"):
                await screen.press("F")
                await screen.settle()
                seen.append(screen.text)
        return seen

    for name, text in zip(
        ("heatmap", "cv-over-time", "step-time"), asyncio.run(look()), strict=True
    ):
        agree(f"figure-{name}-{size[0]}x{size[1]}", text)


def test_ascii_has_nothing_else() -> None:
    async def look() -> str:
        async with shown(stage(Path(), "running"), ascii=True) as screen:
            return screen.text

    text = asyncio.run(look())
    assert text.isascii()
    agree("running-ascii-140x45", text)


def test_first_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def planned(invocation: Invocation) -> Snapshot:
        made = [
            Run(b, d, d, f"datasets/{d}_0.5.jsonl")
            for b in ("baseline", "all2all")
            for d in ("001", "002")
        ]
        return Snapshot(
            name="demo", engine="auto", runs={r.id: RunState(r, score=0.5) for r in made}
        )

    monkeypatch.setattr(session, "planned", planned)

    agree_at_every_size("not-started", Session(Invocation()))


def test_forced_routing_has_a_column_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def planned(invocation: Invocation) -> Snapshot:
        doses = None, Dose("hot-rank", 0.25), Dose("hot-experts", 1.5)
        made = [
            Run("baseline", "001", label("001", 1, dose), "datasets/001_0.5.jsonl", dose)
            for dose in doses
        ]
        replay = Replay("007-r2")
        file = "datasets/001_0.5.jsonl"
        made.append(Run("baseline", "001", label("001", 1, replay), file, replay=replay))
        return Snapshot(
            name="demo", engine="auto", runs={r.id: RunState(r, score=0.5) for r in made}
        )

    monkeypatch.setattr(session, "planned", planned)

    async def look() -> str:
        async with shown(Session(Invocation()), 140, 45) as screen:
            await screen.press("1")
            return screen.text

    text = asyncio.run(look())
    for pattern, level in (("hot-rank", "0.25"), ("hot-experts", "1.5")):
        assert f"001     {pattern} {level}" in text
    assert "001     replay 007-r2" in text


def test_a_configuration_that_cannot_be_run() -> None:
    async def look() -> str:
        async with shown(Session(Invocation(Path("nowhere.toml"))), 80, 24) as screen:
            return screen.text

    text = asyncio.run(look())
    assert "nowhere.toml: no such file" in text
    agree("no-configuration-80x24", text)
