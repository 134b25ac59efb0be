"""Recorded run directories, cut at the state that a test needs, and the App showing them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace
from textual.events import Key
from textual.pilot import Pilot

from core.experiment import events, plan
from core.experiment.control import Command
from core.experiment.dose import Dose
from core.experiment.events import AnyEvent, Gpu, Latency, RunFigures
from core.experiment.invocation import Invocation
from core.experiment.plan import Run
from core.rundir import journal
from tui.app import Gatescope
from tui.model.session import Session

RECORDED = Path(__file__).parents[1] / "tui" / "runs"
GOLDEN = Path(__file__).parents[1] / "golden"
UPDATE = os.environ.get("GATESCOPE_GOLDEN") == "update"


class Played(Session):
    """A session over a recording: its clock stands still, and it records commands instead of
    sending them."""

    def __init__(
        self, invocation: Invocation, run_dir: Path | None, *, live: bool, now: float
    ) -> None:
        super().__init__(invocation, run_dir, clock=lambda: now)
        self.live = live
        self.sent: list[Command] = []
        self.started = 0
        self.retried = False

    def is_live(self) -> bool:
        return self.live

    def send(self, command: Command) -> None:
        self.sent.append(command)

    def start(self, *, retry_cancelled: bool = False) -> Path:
        self.started += 1
        self.retried = retry_cancelled
        return Path("runs/demo")

    def datasets(self) -> dict[str, Path]:
        return {index: Path(f"datasets/{index}_0.5.jsonl") for index in ("001", "002", "003")}


def until(recorded: list[AnyEvent], last: Callable[[AnyEvent], bool]) -> list[AnyEvent]:
    """The events up to and including the first for which `last` is true."""
    place = next(n for n, event in enumerate(recorded) if last(event))
    return recorded[: place + 1]


def request(run: str, number: int) -> Callable[[AnyEvent], bool]:
    """A predicate that is true for the `number`-th finished request of a run."""
    seen = iter(range(1, number + 1))
    return lambda e: isinstance(e, events.RequestFinished) and e.run == run and next(seen) == number


def of_kind(kind: type[Any], nth: int = 1) -> Callable[[AnyEvent], bool]:
    seen = iter(range(1, nth + 1))
    return lambda e: isinstance(e, kind) and next(seen) == nth


def stage(place: Path, name: str) -> Played:
    """A session in one of STAGES, in a directory of its own."""
    recording, cut, live = STAGES[name]
    return played(RECORDED / recording, place, cut, live=live)


def played(
    recording: Path,
    place: Path,
    cut: Callable[[list[AnyEvent]], list[AnyEvent]] = lambda e: e,
    *,
    live: bool,
) -> Played:
    """A session over a copy of `recording` in `place`/runs, as far as `cut` keeps it."""
    folder = place / "runs" / recording.name
    shutil.copytree(recording, folder)
    kept = cut(journal.read_events(folder))
    (folder / "events.jsonl").write_bytes(b"".join(events.encode(e) + b"\n" for e in kept))
    return Played(Invocation(), folder, live=live, now=kept[-1].at + 0.5)


def _stopped(recorded: list[AnyEvent]) -> list[AnyEvent]:
    kept = until(recorded, request("baseline/002", 9))
    return [*kept, events.ExperimentInterrupted(at=kept[-1].at + 0.2, by="stop")]


def _cancelled(recorded: list[AnyEvent]) -> list[AnyEvent]:
    kept = until(recorded, request("baseline/002", 9))
    return [*kept, events.RunCancelled(at=kept[-1].at + 0.2, run="baseline/002", completed=9)]


def _dosed(_: list[AnyEvent]) -> list[AnyEvent]:
    """A finished experiment of two backends, with natural routing and with four levels of two
    patterns: 10 ms, and what skew adds."""
    rng = np.random.default_rng(1)
    levels = (0.0, 0.5, 1.0, 1.5)
    forced = [Dose(pattern, level) for pattern in ("hot-rank", "spread") for level in levels]
    runs = [
        Run(backend, "001", plan.label("001", repeat, dose), "datasets/001_0.5.jsonl", dose)
        for backend in ("baseline", "all2all")
        for repeat in (1, 2, 3)
        for dose in (None, *forced)
    ]
    made: list[AnyEvent] = [
        events.ExperimentStarted(at=1e9, name="dose", engine="builtin (NumPy, CPU)", runs=runs)
    ]
    for at, run in enumerate(runs, 10**9):
        made.append(events.RunStarted(at=at + 0.2, run=run.id, requests=16))
        figures = _figures(run, float(rng.normal(0, 0.1)))
        made.append(events.RunFinished(at=at + 1.0, run=run.id, result="", figures=figures))
    return [*made, events.ExperimentFinished(at=made[-1].at + 0.5, done=len(runs), failed=0)]


def _figures(run: Run, noise: float) -> RunFigures:
    level = run.dose.level if run.dose else 0.3
    rise = {"hot-rank": 4.0, "spread": 1.0}[run.dose.pattern] if run.dose else 1.0
    rank = 1 + level if rise > 1 else 1.0
    tpot = noise + (12.0 if run.backend == "baseline" else 10.0 + rise * level)
    times = {"ttft": 100.0 + 20 * noise, "tpot": tpot, "itl": tpot, "e2e": 100 + 31 * tpot}
    return RunFigures(
        completed=16,
        failed=0,
        duration_s=1.0,
        output_throughput=16_000 / tpot,
        latencies={
            name: Latency(n=16, mean=v, p50=v, p90=v, p99=None, max=v) for name, v in times.items()
        },
        score=0.5,
        cv=level + 0.3,
        aggregated_cv=level + 0.01,
        excess_cv=level or None,
        rank_imbalance=rank if run.backend == "all2all" else None,
        decode_step_ms=tpot - 1,
    )


def _with_gpus(recorded: list[AnyEvent]) -> list[AnyEvent]:
    """The recording's samples on a machine with two GPUs."""

    def gpu(index: int, second: int) -> Gpu:
        return Gpu(
            index=index,
            memory_used_gib=96.0 + index,
            memory_total_gib=141.0,
            utilisation_pct=min(100, 20 * second + 7 * index),
            power_w=180.0 + 90 * second,
            temperature_c=40 + second,
            sm_clock_mhz=1980 - 60 * index,
        )

    return [
        replace(e, gpus=[gpu(0, n % 9), gpu(1, n % 9)]) if isinstance(e, events.Sampled) else e
        for n, e in enumerate(recorded)
    ]


STAGES: dict[str, tuple[str, Callable[[list[AnyEvent]], list[AnyEvent]], bool]] = {
    "starting": ("demo", lambda e: until(e, of_kind(events.BackendPhase)), True),
    "first": ("demo", lambda e: until(e, request("baseline/001", 4)), True),
    "running": ("demo", lambda e: until(e, request("all2all/002", 21)), True),
    "cancelled": ("demo", _cancelled, True),
    "stopped": ("demo", _stopped, False),
    "gone": ("demo", lambda e: until(e, request("baseline/002", 9)), False),
    "finished": ("demo", lambda e: e, False),
    "failed": ("failed", lambda e: e, False),
    "streaming": ("live", lambda e: e, True),
    "gpus": ("live", _with_gpus, True),
    "dosed": ("demo", _dosed, False),
}


@asynccontextmanager
async def shown(
    session: Session,
    width: int = 140,
    height: int = 45,
    *,
    ascii: bool = False,
    settings_file: Path | None = None,
) -> AsyncIterator[Screen]:
    """The App over a session, settled; it ticks only when a test makes it tick."""
    app = Gatescope(session, ascii=ascii, settings_file=settings_file)
    app.theme = app.settings.theme or "dark"  # whatever terminal the tests run in
    async with app.run_test(size=(width, height)) as pilot:
        screen = Screen(app, pilot)
        await screen.settle()
        yield screen


class Screen:
    """The App's screen and keyboard, as a test uses them."""

    def __init__(self, app: Gatescope, pilot: Pilot[int]) -> None:
        self.app, self.pilot = app, pilot

    async def settle(self) -> None:
        """Wait until all pending work is drawn."""
        for _ in range(2):
            await self.pilot.pause()
            await self.app.workers.wait_for_complete()
            await self.pilot.pause()
            self.app.tick()
        await self.app.workers.wait_for_complete()
        if self.app._timer:
            self.app._timer.pause()
        self.app.show()
        await self.pilot.pause()

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.pilot.pause()

    async def burst(self, *keys: str) -> None:
        """Press keys as a slow line hands them on: all at once."""
        for key in keys:
            self.app.post_message(Key(key, {"space": " "}.get(key, key if len(key) == 1 else None)))
        await self.pilot.pause()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait for the effect of a thread or a dialog; AssertionError after a minute."""
        deadline = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < deadline, self.text
            await self.pilot.pause(0.01)

    @property
    def text(self) -> str:
        # Textual has no public way to the text of a screen.
        strips = self.app.screen._compositor.render_strips()
        return "\n".join(strip.text.rstrip() for strip in strips) + "\n"
