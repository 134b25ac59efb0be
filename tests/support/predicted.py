"""Batches of the built-in engine whose routing is predicted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXPERIMENT = """
[experiment]
datasets = "*.jsonl"
max_concurrency = 0
warmup_requests = 1
"""
BACKEND = """
[[backends]]
name = "{}"
port = 0
tensor_parallel = 1
"""


def queries(first: int) -> list[str]:
    """One of each subject."""
    of = json.loads((ROOT / "datasets" / "domain_queries.json").read_text())
    return [subject[first] for subject in of.values()]


def run(
    folder: Path, datasets: Sequence[Sequence[str]], output_len: int, **backends: dict[str, int]
) -> Path:
    """The run directory of datasets 001, 002 … on these backends, with these keys."""
    for number, texts in enumerate(datasets, 1):
        rows = [json.dumps({"text": text}) + "\n" for text in texts]
        (folder / f"{number:03d}_0.5.jsonl").write_text("".join(rows))
    config = f"{EXPERIMENT}output_len = {output_len}\n"
    for name, keys in backends.items():
        config += BACKEND.format(name) + "".join(f"{k} = {v}\n" for k, v in keys.items())
    (folder / "experiments.toml").write_text(config)
    done = subprocess.run(
        [sys.executable, "-m", "core.cli", "--batch", "--engine", "builtin", "--out", "run"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run"
