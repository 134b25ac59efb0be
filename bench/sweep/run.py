"""Sweeps of the built-in engine, with real servers: how long one takes, kills at seeded instants,
and a search for a planted limit.

    uv run python -m bench.sweep.run time|kills|limit
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from core.experiment import events
from core.rundir import journal, result, sweep

GATESCOPE = [sys.executable, "-m", "core.cli"]
CONFIG = """[experiment]
engine = "builtin"
num_prompts = {prompts}
output_len = {output}
warmup_requests = 2
starts = {starts}
[model]
max_model_len = 1024
[[backends]]
name = "baseline"
port = 0
tensor_parallel = 1
max_num_seqs = 6
"""
ALL2ALL = """[[backends]]
name = "all2all"
port = 0
tensor_parallel = 1
data_parallel = 2
expert_parallel = true
"""
GRID = (
    "--set=backends.*.max_num_seqs=8,32",
    "--set=backends.*.max_num_batched_tokens=256,2048",
)
FREE = "--set=experiment.max_concurrency=2,4"  # which needs no restart
SEARCH = """[search]
slo = {{ ttft_ms = {limit:.1f} }}
share = 0.9
high = 24
"""
KILLS, LATEST_S = 20, 12.0


def prepare(folder: Path, text: str, prompts: int = 30) -> Path:
    (folder / "datasets").mkdir(parents=True)
    for index in (1, 2):
        rows = [
            {"id": str(n), "text": f"Question {n} of dataset {index}: what is {n} times {index}?"}
            for n in range(prompts)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "datasets" / f"{index:03d}_0.5.jsonl").write_text(lines)
    (folder / "experiments.toml").write_text(text)
    return folder


def gatescope(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*GATESCOPE, *arguments], cwd=folder, text=True, capture_output=True, check=False
    )


def timed(folder: Path) -> None:
    """Four settings of two backends, two starts each, in one command."""
    prepare(folder, CONFIG.format(prompts=16, output=16, starts=2) + ALL2ALL)
    began = time.monotonic()
    done = gatescope(folder, "--batch", "--out", "made", *GRID)
    took = time.monotonic() - began
    runs = sum(len(result.done_runs(p)) for p in sweep.run_directories(folder / "made").values())
    print(gatescope(folder, "sweep", "status", "made").stdout)
    print(f"8 cells, 16 starts, {runs} runs: exit code {done.returncode}, {took:.0f} s")


def kills(folder: Path, seed: int = 7) -> None:
    """SIGKILL at seeded instants, each followed by a resume, sweep after sweep; then a last resume
    to the end. Half of the cells take over the server of another."""
    instants, killed, number, lost, twice = random.Random(seed), 0, 0, 0, 0
    while killed < KILLS:
        place = prepare(
            folder / f"{number}", CONFIG.format(prompts=6, output=8, starts=2) + ALL2ALL
        )
        number += 1
        before: dict[str, bytes] = {}
        code = None
        while code is None:
            begun = sweep.is_sweep(place / "made")
            how = ("--resume", "made") if begun else ("--out", "made", GRID[0], FREE)
            code = _run(place, how, instants.uniform(0.3, LATEST_S) if killed < KILLS else None)
            killed += code is None
            after = _results(place / "made")
            lost += sum(after.get(name) != data for name, data in before.items())
            before = after
            if not sweep.is_sweep(place / "made"):
                for left in (place / "made").glob("*"):
                    left.unlink()
        twice += _twice(place / "made")
        print(f"sweep {number}: {killed} kills so far, {len(before)} results, exit code {code}")
    print(f"{killed} kills in {number} sweeps: {lost} results lost or changed, {twice} done twice")


def limit(folder: Path) -> None:
    """Six requests run at once, so that with seven in flight one in seven waits for a whole
    request: the limit at a share of 0.9 is six."""
    text = CONFIG.format(prompts=60, output=40, starts=3)
    prepare(folder, text, prompts=60)
    once = ("--only", "001", "--set=experiment.max_concurrency=6", "--set=experiment.starts=1")
    gatescope(folder, "--batch", "--out", "pilot", *once)
    pilot = result.read(folder / "pilot" / "baseline" / "results_json" / "001.json")
    assert pilot.mean_ttft_ms
    assert pilot.mean_e2e_ms
    half = (pilot.mean_ttft_ms + pilot.mean_e2e_ms) / 2
    (folder / "experiments.toml").write_text(text + SEARCH.format(limit=half))
    done = gatescope(folder, "--batch", "--out", "made", "--only", "001")
    (found,) = json.loads((folder / "made" / "limits.json").read_text())
    print(done.stderr[done.stderr.rindex("baseline: ") :].partition("\nmean")[0])
    low, high = found["low"] or 0, found["high"] or float("inf")
    print(f"planted 6, found {found['value']:g}, in its interval: {low <= 6 <= high}")


def _run(place: Path, how: tuple[str, ...], instant_s: float | None) -> int | None:
    """The exit code of a batch; None where it was killed at that instant. Its tree is gone."""
    process = subprocess.Popen(
        [*GATESCOPE, "--batch", *how],
        cwd=place,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(instant_s)
    tree = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    _, left = psutil.wait_procs(tree, timeout=15)
    assert not left, f"left behind: {left}"
    return None


def _results(path: Path) -> dict[str, bytes]:
    """What counts as done, with the bytes of each result."""
    if not sweep.is_sweep(path):
        return {}
    found = {}
    for slug, own in sweep.run_directories(path).items():
        for run in result.done_runs(own) if (own / "events.jsonl").exists() else ():
            backend, _, label = run.partition("/")
            file = own / backend / "results_json" / f"{label}.json"
            found[f"{slug}/{run}"] = file.read_bytes()
    return found


def _twice(path: Path) -> int:
    count = 0
    for own in sweep.run_directories(path).values():
        told: list[Any] = journal.read_events(own)
        ended = Counter(e.run for e in told if isinstance(e, events.RunFinished))
        count += sum(n > 1 for n in ended.values())
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("what", choices=("time", "kills", "limit"))
    what = {"time": timed, "kills": kills, "limit": limit}[parser.parse_args().what]
    with tempfile.TemporaryDirectory() as folder:
        what(Path(folder))


if __name__ == "__main__":
    main()
