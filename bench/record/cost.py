"""What `gatescope record` with metrics costs the built-in engine: TPOT, and CPU time of a token, of
starts with and without, in pairs whose order alternates. The metrics are scraped once a second.

    uv run python -m bench.record.cost [--pairs 12]

TPOT is by the clock, so whatever else runs on the machine is in it; CPU time is the server's own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import psutil

from bench.record import served
from bench.record.served import RECORD, Served
from core.load import client, metrics
from core.load.client import Load
from core.stats import bootstrap
from core.workload.dataset import Prompt

REQUESTS, OUTPUT, ROUNDS = 16, 96, 4
SERVE = [sys.executable, "-m", "core.builtin.server", "--served-model-name", "m"]


class Start(NamedTuple):
    """One start: mean TPOT of its rounds, the server's CPU time per output token, and that of the
    process that answers Prometheus, in % of a core."""

    tpot_ms: float
    cpu_us: float
    exporter_pct: float


def measured(place: Path, *, recorded: bool) -> Start:
    port, scraped = served.free_port(), served.free_port()
    command = [*SERVE, "--port", str(port), "--data-parallel-size", "2", "--enable-expert-parallel"]
    if recorded:
        out = ["--out", str(place / "logs"), "--metrics-port", str(scraped)]
        command = [*RECORD, *out, "--", *command]
    with served.serving(command, port, place / "server.log") as server:
        server.wait_ready()
        asyncio.run(_round(server, 0))
        with _scraping(scraped if recorded else 0) as exporter:
            before, exported = _cpu_s(server), _own_s(exporter)
            found = [asyncio.run(_round(server, n)) for n in range(1, ROUNDS + 1)]
            cpu = _cpu_s(server) - before
            took = sum(seconds for _, seconds in found)
            pct = 100 * (_own_s(exporter) - exported) / took
        server.end()
    tokens = ROUNDS * REQUESTS * OUTPUT
    return Start(float(np.mean([tpot for tpot, _ in found])), 1e6 * cpu / tokens, pct)


async def _round(server: Served, number: int) -> tuple[float, float]:
    """Mean TPOT and duration of simultaneous requests."""
    prompts = [Prompt(id=str(n), text=f"round {number}, request {n}: ") for n in range(REQUESTS)]
    load = Load(server.url, "m", f"{number:03d}", prompts, output_len=OUTPUT, workers=1)
    records = await client.run(load)
    figures = metrics.summarise(records)
    assert figures.mean_tpot_ms, {one.error for one in records}
    assert figures.duration
    return figures.mean_tpot_ms, figures.duration


@contextlib.contextmanager
def _scraping(port: int) -> Iterator[psutil.Process | None]:
    """The process that answers Prometheus, asked once a second."""
    if not port:
        yield None
        return
    over = threading.Event()

    def scrape() -> None:
        while not over.wait(1.0):
            httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).raise_for_status()

    asking = threading.Thread(target=scrape)
    asking.start()
    try:
        yield next(
            own
            for own in psutil.process_iter(["cmdline", "net_connections"])
            if "core.commands.exporter" in (own.info["cmdline"] or ())
            and any(c.laddr and c.laddr.port == port for c in own.info["net_connections"] or ())
        )
    finally:
        over.set()
        asking.join()


def _cpu_s(server: Served) -> float:
    top = psutil.Process(server.process.pid)
    return sum(_own_s(one) for one in (top, *top.children(recursive=True)))


def _own_s(process: psutil.Process | None) -> float:
    return sum(process.cpu_times()[:2]) if process else 0.0


def _ratio(values: list[tuple[float, float]]) -> str:
    """Geometric mean of with/without over pairs, with Student's 95 % interval."""
    logs = np.log([after / before for before, after in values])
    half = bootstrap.t_quantile(len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs))
    ends = [100 * math.expm1(end) for end in (logs.mean(), logs.mean() - half, logs.mean() + half)]
    return "{:+.2f} % [{:+.2f}, {:+.2f}]".format(*ends)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pairs", type=int, default=12)
    found: dict[bool, list[Start]] = {False: [], True: []}
    for pair in range(parser.parse_args().pairs):
        for recorded in (False, True) if pair % 2 else (True, False):
            with tempfile.TemporaryDirectory() as folder:
                found[recorded].append(measured(Path(folder), recorded=recorded))
        off, on = found[False][-1], found[True][-1]
        print(f"{pair + 1}: {off.tpot_ms:.2f} {on.tpot_ms:.2f} ms,", end=" ")
        print(f"{off.cpu_us:.1f} {on.cpu_us:.1f} us a token, load {os.getloadavg()[0]:.1f}")
        sys.stdout.flush()
    for place, name in enumerate(("TPOT", "CPU time per output token")):
        both = [(off[place], on[place]) for off, on in zip(found[False], found[True], strict=True)]
        without, recorded_mean = np.mean(both, axis=0)
        print(f"{name}: {without:.2f} without, {recorded_mean:.2f} with: {_ratio(both)}")
    exported = np.mean([one.exporter_pct for one in found[True]])
    print(f"the process beside it: {exported:.1f} % of a core")


if __name__ == "__main__":
    main()
