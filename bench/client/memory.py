"""Memory of a load worker, and of its parent, while a million tokens go by.

python bench/client/memory.py
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import psutil

from core.dataset import Prompt
from core.load import client
from core.load.record import Progress

REQUESTS, TOKENS, STREAMS = 8000, 128, 64


def main() -> None:
    command = [
        sys.executable,
        str(Path(__file__).parent / "truth_server.py"),
        "--port",
        "0",
        "--firehose",
        "--burst",
        "8",
    ]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    url = "http://" + server.stderr.readline().split()[2]
    prompts = [Prompt(str(i), f"prompt {i}") for i in range(REQUESTS)]
    load = client.Load(url, "truth", "001", prompts, output_len=TOKENS, max_concurrency=STREAMS, workers=1)
    try:
        records = asyncio.run(client.run(load, on_progress=_tell))
    finally:
        server.terminate()
        server.wait()
    print(f"{sum(r.output_tokens for r in records)} tokens, {sum(not r.ok for r in records)} errors")


def _tell(progress: Progress) -> None:
    children = psutil.Process().children(recursive=True)
    worker = sum(p.memory_info().rss for p in children if "core.load.worker" in p.cmdline())
    parent = psutil.Process().memory_info().rss
    print(f"{progress.output_tokens:>9} tokens: worker {worker / 1e6:.0f} MB, parent {parent / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
