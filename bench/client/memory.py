"""Memory of a load worker, and of its parent, while a million tokens pass.

python bench/client/memory.py
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from core.load import client
from core.load.record import Progress
from core.workload.dataset import Prompt

REQUESTS, TOKENS, STREAMS = 8000, 128, 64
TRUTH_SERVER = str(Path(__file__).parent / "truth_server.py")
SERVER = [TRUTH_SERVER, "--firehose", "--port=0", "--burst=8"]


@dataclass(frozen=True)
class Sample:
    """Memory in MB after `tokens` tokens."""

    tokens: int
    worker: float
    parent: float


def sampled() -> list[Sample]:
    """About one sample a second."""
    server = subprocess.Popen([sys.executable, *SERVER], stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    url = "http://" + server.stderr.readline().split()[2]
    prompts = [Prompt(str(i), f"prompt {i}") for i in range(REQUESTS)]
    load = client.Load(
        url, "truth", "001", prompts, output_len=TOKENS, max_concurrency=STREAMS, workers=1
    )
    samples: list[Sample] = []
    try:
        asyncio.run(
            client.run(load, on_progress=lambda progress: samples.append(_sample(progress)))
        )
    finally:
        server.terminate()
        server.wait()
        server.stderr.close()
    return samples


def growth(samples: list[Sample]) -> float:
    """The worker's peak in the second half of the tokens, over its peak in the first half."""
    half = samples[-1].tokens / 2
    early, late = (
        [s.worker for s in samples if (s.tokens > half) is late] for late in (False, True)
    )
    return max(late) / max(early) if early else float("nan")


def _sample(progress: Progress) -> Sample:
    me = psutil.Process()
    worker = sum(
        p.memory_info().rss
        for p in me.children(recursive=True)
        if "core.load.worker" in p.cmdline()
    )
    return Sample(progress.output_tokens, worker / 1e6, me.memory_info().rss / 1e6)


if __name__ == "__main__":
    for sample in (found := sampled()):
        memory = f"worker {sample.worker:.0f} MB, parent {sample.parent:.0f} MB"
        print(f"{sample.tokens:>9} tokens: {memory}")
    print(f"the worker's second half over its first: {growth(found):.2f}")
