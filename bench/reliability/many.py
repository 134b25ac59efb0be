"""A long queue: many datasets at two backends in one batch, and the memory of the engine and of a
terminal UI.

    uv run python bench/reliability/many.py FOLDER [DATASETS [LIMIT_S]]

Real: the batch, the built-in engine, a load worker process per run, and a terminal UI that follows
the batch on a terminal of its own. After LIMIT_S, SIGTERM ends the batch, and the figures cover the
runs done by then. Prints one JSON object; bench/reliability/run.py makes the table.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from support.watched import free_port

from bench.tui.run import ATTACH, Program

EVERY = 100  # runs
CONFIG = """[experiment]
engine = "builtin"
datasets = "datasets/*.jsonl"
num_prompts = 1
output_len = 2
warmup_requests = 1
[model]
max_model_len = 256
"""
BACKEND = """[[backends]]
name = "{name}"
port = {port}
tensor_parallel = 1
expert_parallel = {expert_parallel}
"""


def write_experiment(folder: Path, count: int) -> None:
    (folder / "datasets").mkdir(parents=True)
    for index in range(1, count + 1):
        line = {
            "id": "q",
            "text": f"question {index} of {count}: how long is a queue?",
            "category": "c",
        }
        (folder / "datasets" / f"{index:04d}_0.5000.jsonl").write_text(json.dumps(line) + "\n")
    backends = [
        BACKEND.format(name=name, port=free_port(), expert_parallel=ep)
        for name, ep in (("baseline", "false"), ("all2all", "true"))
    ]
    (folder / "experiments.toml").write_text(CONFIG + "".join(backends))


def mib(pid: int) -> float:
    return float(psutil.Process(pid).memory_info().rss / 2**20)


def slope(values: list[float]) -> float:
    """Least-squares slope per value over the second half, which leaves out what start-up fills."""
    late = values[len(values) // 2 :]
    if len(late) < 2:
        return 0.0
    n, mean = len(late), sum(late) / len(late)
    middle = (n - 1) / 2
    covariance = sum((i - middle) * (v - mean) for i, v in enumerate(late))
    return covariance / sum((i - middle) ** 2 for i in range(n))


def drained(tui: Program) -> None:
    """Read what the terminal UI paints until it is gone."""
    with contextlib.suppress(OSError):
        tui.drain(1e6)


def run(folder: Path, count: int, limit_s: float) -> dict[str, Any]:
    """Run the batch and follow its events; return the figures."""
    write_experiment(folder, count)
    command = [sys.executable, "-m", "core.cli", "--batch", "--json", "--out", "made"]
    began, engine, screen = time.perf_counter(), [], []
    done = failed = 0
    tui: Program | None = None
    with open(folder / "stderr.txt", "wb") as stderr:
        here = {**os.environ, "PYTHONPATH": str(ROOT)}
        batch = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=stderr, env=here
        )
        guard = threading.Timer(limit_s, batch.terminate)
        guard.start()
        assert batch.stdout
        for line in batch.stdout:
            failed += b'"event":"RunFailed"' in line
            if b'"event":"RunFinished"' not in line:
                continue
            done += 1
            if tui is None:
                tui = Program(ATTACH, str(folder / "made"))
                threading.Thread(target=drained, args=(tui,), daemon=True).start()
            if done % EVERY == 0:
                engine.append(mib(batch.pid))
                screen.append(mib(tui.pid))
                sizes = f"engine {engine[-1]:.1f} MiB, screen {screen[-1]:.1f} MiB"
                print(f"{done} runs: {sizes}", file=sys.stderr)
        code = batch.wait()
        guard.cancel()
    if tui:
        psutil.Process(tui.pid).kill()
    return {
        "datasets": count,
        "done": done,
        "failed": failed,
        "exit_code": code,
        "seconds": time.perf_counter() - began,
        "engine_mib": engine,
        "screen_mib": screen,
        "engine_slope_mib": slope(engine),
        "screen_slope_mib": slope(screen),
        "journal_mb": (folder / "made" / "events.jsonl").stat().st_size / 1e6,
    }


if __name__ == "__main__":
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
    limit_s = float(sys.argv[3]) if len(sys.argv) > 3 else 1e6
    print(json.dumps(run(Path(sys.argv[1]), count, limit_s)))
