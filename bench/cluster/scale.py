"""What it costs to follow 1,000 cells on 50 nodes: CPU, memory, the time until an event is seen.

    uv run python -m bench.cluster.scale [--cells 1000] [--nodes 50] [--seconds 60]

The journals are written, not measured: every cell has the events of eight finished runs, and then
each of the nodes, a thread of another process, adds an event a second to a journal of its own. The
follower is that of `gatescope --batch --executor slurm`; the view is the terminal UI's matrix.
A network's file system is not part of it: its caches add what they are set to.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from unittest import mock

import numpy as np
import psutil

from bench.sweep import simulated
from core.commands.sweep_cluster import POLL_S, Followed
from core.experiment import events
from core.experiment.tables import Backend
from core.rundir import sweep
from core.rundir.journal import Journal
from tui.model.sweep import SweepSession


def made(folder: Path, cells: int) -> Path:
    """A sweep of so many cells, whose runs are done."""
    rng = np.random.default_rng(1)
    config = simulated.config_of([Backend(name="b")])
    own = {}
    for number in range(cells):
        values = {"b": simulated.drawn(rng, starts=2, datasets=4)}
        own[f"cell-{number:04}"] = (config, values)
    settings = {slug: {"backends.b.max_num_seqs": n + 1} for n, slug in enumerate(own)}
    with mock.patch("os.fsync"):  # of 9,000 files, which nobody will miss
        return simulated.sweep(folder, own, settings)


def nodes(folder: Path, count: int, seconds: float) -> None:
    """Each node adds an event a second, one after the other within it."""
    journals = [own / "events.jsonl" for own in sweep.run_directories(folder).values()]

    def node(number: int) -> None:
        time.sleep(number / count)
        end = time.time() + seconds
        while time.time() < end:
            told = events.BackendPhase(backend="b", phase=str(time.time()))
            with open(journals[number], "ab") as file:
                file.write(events.encode(told) + b"\n")
            time.sleep(1)

    threads = [threading.Thread(target=node, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def follow(folder: Path, seconds: float) -> tuple[list[float], float, float]:
    """Delays of the events seen, s; the first fold's CPU, s; and the share of a core after it."""
    began = time.process_time()
    followed = [
        Followed(one, Journal(sweep.folder(folder, one))) for one in sweep.read(folder).cells
    ]
    for one in followed:
        list(one.news())
    first = time.process_time() - began
    delays = []
    end, since, cpu = time.monotonic() + seconds, time.monotonic(), time.process_time()
    while time.monotonic() < end:
        time.sleep(POLL_S)
        for one in followed:
            seen = [e for e in one.news() if isinstance(e, events.BackendPhase)]
            delays += [time.time() - float(event.phase) for event in seen]
    return delays, first, (time.process_time() - cpu) / (time.monotonic() - since)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--as-nodes", type=Path)
    given = parser.parse_args()
    if given.as_nodes:
        nodes(given.as_nodes, given.nodes, given.seconds)
        return
    with tempfile.TemporaryDirectory() as place:
        folder = made(Path(place) / "sweep", given.cells)
        before = psutil.Process().memory_info().rss
        words = [sys.executable, "-m", "bench.cluster.scale", "--as-nodes", str(folder)]
        writer = subprocess.Popen(
            [*words, "--nodes", str(given.nodes), "--seconds", str(given.seconds)]
        )
        delays, first, share = follow(folder, given.seconds)
        grown = psutil.Process().memory_info().rss - before
        writer.wait()
        print(f"{given.cells} cells, load average {psutil.getloadavg()[0]:.0f}")
        print(f"first fold: {first:.2f} s of CPU; memory grew by {grown / 2**20:.0f} MiB")
        print(f"following: {100 * share:.1f} % of a core, {len(delays)} events seen")
        middle, late = np.percentile(delays, [50, 99])
        print(f"an event is seen after {middle:.2f} s (median), {late:.2f} s (99 %)")
        began = time.process_time()
        SweepSession(folder).read()
        took = time.process_time() - began
        print(f"the matrix drawn from all results: {took:.2f} s of CPU")


if __name__ == "__main__":
    main()
