"""A day of measuring under a clock that jumps to the next event: what grows in 24 hours, and by how
much.

    uv run python bench/reliability/day.py DIR [HOURS]

Real: runs (core.engine.measurement), their sampling once a second, journal, gate log and its
reader, results, and the batch's output with its heartbeat. Made up: the load (a request of 50
tokens every two seconds) and what the server and eight GPUs report. Prints one JSON object;
bench/reliability/run.py makes the table.
"""

from __future__ import annotations

import asyncio
import json
import os
import selectors
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

BEGIN = time.time()


class Clock:
    """Every clock of this process. It stands still while there is something to do."""

    now = 1e6


class Jumping(selectors.DefaultSelector):
    """Waiting takes no time: the clock jumps to the end of the wait."""

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "nothing left to do"
        Clock.now += max(0.0, timeout)
        return super().select(0)


time.time = lambda: BEGIN + Clock.now
time.monotonic = time.perf_counter = lambda: Clock.now
time.perf_counter_ns = time.monotonic_ns = lambda: int(Clock.now * 1e9)

sys.path.insert(0, str(Path(__file__).parents[2]))
import httpx
import numpy as np
import psutil

from core.backends import nvml, prometheus
from core.commands import batch_lines
from core.engine.measurement import Measurement, Target
from core.experiment import events, state
from core.experiment.events import AnyEvent, Gpu, ServerLoad
from core.experiment.plan import Run
from core.load import client
from core.load.client import Load
from core.load.record import Progress, Records, RequestRecord
from core.recorder.gatescope_recorder.gatelog import GateLogWriter, Header, Step
from core.routing.folder import GateFolder
from core.rundir.directory import RunDirectory
from core.workload.dataset import Prompt

RUN_S, EVERY_S, TOKENS = 600, 2, 50
LAYERS, EXPERTS, TOP_K = 32, 8, 2
GPUS = [
    Gpu(
        index=i,
        memory_used_gib=61.2,
        memory_total_gib=80.0,
        utilisation_pct=97,
        power_w=612.3,
        temperature_c=61,
    )
    for i in range(8)
]


async def server_load(client: httpx.AsyncClient, base_url: str) -> ServerLoad | None:
    return ServerLoad(running=30, waiting=2, kv_cache=0.4321, preemptions=0)


class MadeUpLoad:
    """Replaces core.load.client.run: a request every two seconds, an engine step a second in the
    gate log."""

    def __init__(self, log: GateLogWriter) -> None:
        self._log, self._steps, self._draw = log, 0, np.random.default_rng(0)

    async def run(
        self,
        load: Load,
        on_done: Callable[[RequestRecord], None] = lambda record: None,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> Records:
        """A load whose requests take EVERY_S seconds each."""
        records = []
        for index, prompt in enumerate(load.prompts):
            begun = time.perf_counter_ns()
            for _ in range(EVERY_S):
                await asyncio.sleep(1.0)
                self._step(load.label)
            stamps = tuple(begun + (i + 1) * EVERY_S * 10**9 // TOKENS for i in range(TOKENS))
            times = (begun, begun, begun, stamps[-1])
            records.append(
                RequestRecord(index, prompt.id, *times, begun, stamps, (1,) * TOKENS, 25, TOKENS)
            )
            on_done(records[-1])
            on_progress(Progress(index + 1, index + 1, TOKENS * (index + 1), index + 1))
        return Records(records)

    def _step(self, label: str) -> None:
        tokens = 32
        counts = self._draw.multinomial(tokens * TOP_K, [1 / EXPERTS] * EXPERTS, LAYERS)
        at = time.perf_counter_ns()
        loads = counts.astype(np.uint16)
        self._log.append(
            Step(self._steps, at, 10**7, tokens, 0, tokens, 32, {label: tokens}, loads)
        )
        self._steps += 1


async def day(directory: RunDirectory, hours: float) -> dict[str, Any]:
    """Take one run after the other for `hours`; return what grew."""
    runs = [
        Run("baseline", f"{i:03d}", f"{i:03d}", "f")
        for i in range(1, round(hours * 3600 / RUN_S) + 1)
    ]
    logs = directory.path / "baseline" / "gate_logs"
    load = MadeUpLoad(
        GateLogWriter(logs / "dp0_pp0.gatelog", Header("e", "m", LAYERS, EXPERTS, TOP_K))
    )
    client.run, prometheus.server_load, nvml.sample = load.run, server_load, _gpus
    target = Target("http://127.0.0.1:1", "vllm", "m", "t", GateFolder(logs.resolve()))
    lines = batch_lines.Lines(json=False, past=state.Snapshot())
    counts: dict[str, int] = {}
    memory = []

    def emit(event: AnyEvent) -> None:
        directory.append(event)
        lines(event)
        counts[type(event).__name__] = counts.get(type(event).__name__, 0) + 1

    emit(events.ExperimentStarted(name="day", engine="vllm", runs=runs))
    for run in runs:
        prompts = tuple(
            Prompt(f"{i}", f"question {i} of {run.dataset}") for i in range(RUN_S // EVERY_S)
        )
        await Measurement(
            target, run, Load("", "m", run.label, prompts), directory, emit, 0.0
        ).take()
        memory.append(psutil.Process().memory_info().rss / 2**20)
    emit(events.ExperimentFinished(done=len(runs), failed=0))
    snapshot = lines._state
    assert snapshot.count("done") == len(runs)
    return {"hours": hours, "runs": len(runs), "events": counts, "rss_mib": memory}


def _gpus(env: Mapping[str, str] | None = None) -> list[Gpu]:
    return GPUS


def main() -> None:
    path, hours = Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 24.0
    heartbeats = path.with_name("output.txt")
    os.dup2(os.open(heartbeats, os.O_WRONLY | os.O_CREAT, 0o600), 2)
    with RunDirectory.create(path) as directory:
        loop = asyncio.SelectorEventLoop(Jumping())
        found = loop.run_until_complete(day(directory, hours))
    found["clock_s"] = Clock.now - 1e6
    found["cpu_s"] = time.process_time()
    found["journal_mb"] = (path / "events.jsonl").stat().st_size / 1e6
    found["heartbeats"] = sum(line.startswith("▶") for line in heartbeats.read_text().splitlines())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
