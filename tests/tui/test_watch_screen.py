"""The screen over a gate log that grows: phases, windows, layers, ranks and nodes."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import numpy as np
import pytest

from core.recorder.gatescope_recorder.gatelog import GateLogWriter, Header, Step
from core.routing.windows import Watched
from tui.watch import WatchScreen
from tui.widgets.lines import Lines

LAYERS, EXPERTS, NOW_NS = 30, 8, 10**13


class Growing:
    """A log of 30 layers, 8 experts on 4 ranks of two nodes: layer 20's first rank has most."""

    def __init__(self, folder: Path) -> None:
        now_ns = int(time.time() * 1e9)
        self.logs = [
            GateLogWriter(
                folder / f"dp{dp}_pp0.gatelog",
                Header(
                    "vllm 0.30", "org/model", LAYERS, EXPERTS, 1, ranks=4,
                    placement=(0, 0, 1, 1, 2, 2, 3, 3), dp=dp, dp_size=2, wall_ns=now_ns,
                    monotonic_ns=NOW_NS,
                ),
            )
            for dp in range(2)
        ]  # fmt: skip
        for dp in range(2):
            for tp in range(2):
                about = {"node": f"gpu-{'ab'[dp]}"}
                (folder / f"dp{dp}_pp0_tp{tp}.gatelog.about.json").write_text(json.dumps(about))
        self.index = 0

    def step(self, before_s: float, *, prefill: bool = False) -> None:
        counts = np.full((LAYERS, EXPERTS), 2)
        counts[20] = [9, 1, 1, 1, 1, 1, 1, 1]
        for log in self.logs:
            start = NOW_NS - int(before_s * 1e9)
            prompt = 16 if prefill else 0
            log.append(Step(self.index, start, 10**7, 16, prompt, 16 - prompt, 4, {}, counts))
            log.flush()
        self.index += 1


def shown(app: WatchScreen) -> str:
    return "\n".join(app.query_one(f"#{part}", Lines).plain for part in ("head", "log", "keys"))


async def settled(app: WatchScreen) -> None:
    app.read()
    await app.workers.wait_for_complete()
    await asyncio.sleep(0)


@pytest.mark.parametrize("size", [(80, 24), (140, 45)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_it_shows_phases_windows_layers_ranks_and_nodes(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    log = Growing(tmp_path)
    for before in (1800, 1700, 5):
        log.step(before)

    async def look() -> list[str]:
        app = WatchScreen(Watched(tmp_path), 1000.0, ascii=size == (80, 24))
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await settled(app)
            seen = [shown(app)]
            log.step(1, prefill=True)
            log.step(1)
            await settled(app)
            for keys in (["O"], ["O", "p"], ["p", "pagedown", "pagedown"]):
                await pilot.press(*keys)
                await pilot.pause()
                seen.append(shown(app))
            await pilot.press("q")
        return seen

    first, ordered, prefill, below = asyncio.run(look())
    assert "30 layers" in first
    assert "4 ranks on 2 nodes" in first
    assert "decode   minute  1 step, 32 tokens" in first
    assert "hour    3 steps, 96 tokens" in first
    rows = [text for text in first.splitlines() if text.startswith("L")]
    assert rows[0].split()[:3] == ["L20", "2.50", "2.50"]  # 10 of 16 on one of four ranks
    assert "gpu-a 75% gpu-a 75%" in rows[0]
    assert "L20 nodes: gpu-a 75%/75%  gpu-b 25%/25%" in first
    assert "L20 ranks: r0 62%/62%  r1 12%/12%" in first
    assert "minute  2 steps, 64 tokens" in ordered  # the log grew
    rows = [text for text in ordered.splitlines() if text.startswith("L")]
    assert rows[0].startswith("L00")
    assert "prefill  minute  1 step, 32 tokens" in prefill
    assert any(text.startswith("L20") for text in prefill.splitlines())
    assert "L29" in below or size == (140, 45)
    assert max(map(len, first.splitlines()[1:-1])) <= size[0]


def test_an_empty_folder_says_so(tmp_path: Path) -> None:
    async def look() -> str:
        app = WatchScreen(Watched(tmp_path), 1000.0)
        async with app.run_test(size=(80, 24)):
            await settled(app)
            return shown(app)

    assert "no gate log here yet" in " ".join(asyncio.run(look()).split())
