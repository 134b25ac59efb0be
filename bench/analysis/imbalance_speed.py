"""How long the CVs of a long gate log take, against upstream's script and against only reading the
file; and peak memory.

    uv run python bench/analysis/imbalance_speed.py [--steps 100000] [--layers 32] [--experts 8]

"Reading" is what any use of the file must do: read its bytes, check them, decompress them and
decode them into counts. The decompression alone, by one call of zstandard, is shown beside it.

Upstream's script calls json.load once per layer and loops over steps in Python. It is timed on the
first --json-steps steps and scaled, since it is linear in steps. Times are processor seconds of one
thread, so that other load on the machine does not count; each is the median of alternated rounds.
Peak memory is measured in a process of its own that only measures the log.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import zstandard

from core.recorder.gatescope_recorder.gatelog import BLOCK_HEAD, GateLogWriter, Header, Step
from core.routing import measured_folder
from core.routing.folder import GateFolder

TOKENS = 30
MEASURE = r"""
import re, sys
from pathlib import Path
from core.routing import imbalance, measured_folder

if sys.argv[1]:
    measured_folder.measure_folder(Path(sys.argv[1]))
print(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
"""


def write(folder: Path, steps: int, layers: int, experts: int, top_k: int) -> Path:
    """A log of skewed multinomial counts, Σ = top_k × tokens."""
    rng = np.random.default_rng(0)
    p = np.sort(rng.dirichlet(np.ones(experts), size=layers))
    pool = np.stack([rng.multinomial(TOKENS * top_k, p) for _ in range(512)])
    writer = GateLogWriter(
        folder / "dp0_pp0.gatelog", Header("bench", "bench", layers, experts, top_k)
    )
    segments = {"001": TOKENS}
    for s in range(steps):
        writer.append(
            Step(s, s * 10**7, 10**7, TOKENS, 0, TOKENS, TOKENS, segments, pool[s * 7919 % 512])
        )
    writer.close()
    return writer.path


def write_json(folder: Path, out: Path, least: int) -> int:
    """Write the first block of the log in upstream's layout, repeated to at least `least` steps;
    return how many steps that is."""
    first = next(iter(GateFolder(folder).blocks()))
    times = -(-least // len(first.tokens))
    out.mkdir()
    for layer in range(first.loads.shape[1]):
        rows = first.loads[:, layer].astype(float).tolist() * times
        data = {
            "step": list(range(len(rows))),
            "num_tokens": [TOKENS] * len(rows),
            "expert_loads": rows,
        }
        (out / f"gate_logs_{layer}.json").write_text(json.dumps(data, indent=2))
    return times * len(first.tokens)


def upstreams_way(folder: Path) -> float:
    """Per-step CV as upstream computes it: json.load per layer, then a loop over its steps."""
    values = []
    for file in folder.glob("gate_logs_*.json"):
        with open(file) as opened:
            data = json.load(opened)
        for loads in data["expert_loads"]:
            row = np.array(loads)
            values.append(row.std() / (row.mean() + 1e-10))
    return float(np.mean(values))


def read_only(folder: Path) -> int:
    """Read, check, decompress and decode every block."""
    return sum(int(part.loads[0, 0, 0]) for part in GateFolder(folder).blocks())


def decompress_only(file: Path) -> int:
    """Only zstandard's work on the file's blocks."""
    data, size = file.read_bytes(), 0
    place = 12 + int.from_bytes(data[8:12], "little")
    while place < len(data):
        _, _, raw, packed, _, _ = BLOCK_HEAD.unpack_from(data, place)
        place += BLOCK_HEAD.size + packed
        size += len(zstandard.decompress(data[place - packed : place], max_output_size=raw))
    return size


def timed(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def peak_mb(folder: Path) -> float:
    """Peak resident memory of a process that measures the folder, less that of one that only
    imports (Linux)."""
    used, idle = (_peak_kb(argument) for argument in (str(folder), ""))
    return (used - idle) / 1000


def _peak_kb(folder: str) -> float:
    command = [sys.executable, "-c", MEASURE, folder]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--top-k", type=int, default=2)
    parser.add_argument("--json-steps", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, upstream = Path(name) / "log", Path(name) / "json"
        file = write(folder, a.steps, a.layers, a.experts, a.top_k)
        json_steps = write_json(folder, upstream, a.json_steps)
        scale = a.steps / json_steps
        ours, read, theirs, unpacked = [], [], [], []
        for _ in range(a.rounds):
            ours.append(timed(lambda: measured_folder.measure_folder(folder)))
            read.append(timed(lambda: read_only(folder)))
            unpacked.append(timed(lambda: decompress_only(file)))
            theirs.append(timed(lambda: upstreams_way(upstream)) * scale)
        m, r, u, z = (statistics.median(x) for x in (ours, read, theirs, unpacked))
        counts = a.steps * a.layers * a.experts
        shape = f"{a.steps} steps × {a.layers} layers × {a.experts} experts"
        size = f"{counts * 2 / 1e6:.0f} MB as uint16, {file.stat().st_size / 1e6:.1f} MB on disk"
        print(f"{shape}: {counts / 1e6:.0f} M counts, {size}")
        print(f"all measures, with intervals    {m:8.3f} s   ({min(ours):.3f}–{max(ours):.3f})")
        print(f"only read the file into counts  {r:8.3f} s   measuring takes {m / r:.2f} × that")
        print(f"only decompress its blocks      {z:8.3f} s   measuring takes {m / z:.2f} × that")
        print(f"upstream's way (from {json_steps} steps) {u:7.1f} s   {u / m:.0f} × slower")
        print(f"peak memory over an idle process {peak_mb(folder):6.0f} MB")


if __name__ == "__main__":
    main()
