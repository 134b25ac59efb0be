"""A directory with a small experiment, and the real `gatescope` command run in it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
from support.watched import free_port

from core.experiment import events, state
from core.experiment.events import AnyEvent
from core.rundir.journal import read_events

GATESCOPE = [sys.executable, "-m", "core.cli"]
LIMIT_S = 100.0
UPSTREAM_KEYS = """
    date backend model_id tokenizer_id num_prompts dataset_name dataset_path request_rate duration
    completed total_input_tokens total_output_tokens
    request_throughput input_throughput output_throughput
    mean_ttft_ms median_ttft_ms p99_ttft_ms mean_tpot_ms median_tpot_ms p99_tpot_ms
    mean_itl_ms median_itl_ms p99_itl_ms
    input_lens output_lens ttfts itls generated_texts errors
    imbalance_score imbalance_components imbalance_raw_metrics
"""
CONFIG = """[experiment]
{settings}
[model]
max_model_len = 600
[[backends]]
name = "baseline"
port = {ports[0]}
tensor_parallel = 1
[[backends]]
name = "all2all"
port = {ports[1]}
tensor_parallel = 1
data_parallel = 2
expert_parallel = true"""
PROMPTS = [
    f"Question {i} of a small dataset: how many of these are there, and why {i}?" for i in range(5)
]
E = TypeVar("E", bound=events.Event)


def is_closed(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


class Place:
    """A directory with an experiment: two datasets, two small backends."""

    def __init__(self, folder: Path, **experiment: Any) -> None:
        self.folder = folder
        self.made = folder / "made"
        self.ports = (free_port(), free_port())
        (folder / "datasets").mkdir()
        for index in (1, 2):
            self.write_dataset(index, PROMPTS)
        settings = {
            "engine": "builtin",
            "output_len": 6,
            "warmup_requests": 1,
            "shuffle": False,
            "graphs": False,  # drawn where a test looks at them
            **experiment,
        }
        lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
        self.config = CONFIG.format(settings="\n".join(lines), ports=self.ports)
        (folder / "experiments.toml").write_text(self.config)

    def write_dataset(self, index: int, texts: list[str]) -> None:
        rows = [{"id": str(i), "text": text, "category": "c"} for i, text in enumerate(texts)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (self.folder / "datasets" / f"{index:03d}_0.5000.jsonl").write_text(lines)

    def gatescope(
        self, *arguments: str | Path, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*GATESCOPE, *arguments],
            cwd=cwd or self.folder,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )

    @contextlib.contextmanager
    def running(
        self,
        *arguments: str,
        ignored: tuple[signal.Signals, ...] = (),
        out: tuple[str, ...] = ("--out", "made"),
    ) -> Iterator[Running]:
        """A batch in the background, started to ignore these signals; none of its processes
        outlives the block."""
        names = " ".join(number.name.removeprefix("SIG") for number in ignored)
        shell = ["sh", "-c", f"trap '' {names}; exec \"$@\"", "sh"] if ignored else []
        with open(self.folder / "stderr.txt", "w") as err:
            process = subprocess.Popen(
                [*shell, *GATESCOPE, "--batch", "--json", *out, *arguments],
                cwd=self.folder,
                stdout=subprocess.PIPE,
                stderr=err,
                start_new_session=True,
            )
        guard = threading.Timer(LIMIT_S, process.kill)
        guard.start()
        batch = Running(process, psutil.Process(process.pid))
        try:
            yield batch
        finally:
            guard.cancel()
            for left in [*batch.tree, batch.me]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    left.kill()
            batch.drain()

    @property
    def journal(self) -> list[AnyEvent]:
        return read_events(self.made)

    def told(self, kind: type[E]) -> list[E]:
        return [event for event in self.journal if isinstance(event, kind)]

    def results(self) -> dict[str, bytes]:
        return {
            str(p.relative_to(self.made)): p.read_bytes()
            for p in self.made.rglob("results_json/*.json")
        }

    def phases(self) -> dict[str, str]:
        return {i: r.phase for i, r in state.fold(self.journal).runs.items()}


class Running:
    """A running batch; its output is read as events."""

    def __init__(self, process: subprocess.Popen[bytes], me: psutil.Process) -> None:
        self.process, self.me = process, me
        self.tree: list[psutil.Process] = []

    def until(self, kind: type[events.Event]) -> None:
        """Read until the next event of a kind, and note which processes there are then."""
        assert self.process.stdout
        for line in self.process.stdout:
            is_event = b'"event":"CellStarted"' not in line  # a sweep's
            if is_event and isinstance(events.decode(line), kind):
                self.tree = self.me.children(recursive=True)
                return
        pytest.fail(f"it ended with {self.process.wait()} before {kind.__name__}")

    def end(self, number: signal.Signals) -> int:
        """Send SIGTERM and SIGKILL to gatescope alone, as `kill` does, and other signals to its
        group, as a terminal does; return the exit code."""
        if number in (signal.SIGTERM, signal.SIGKILL):
            self.me.send_signal(number)
        else:
            os.killpg(self.me.pid, number)
        return self.drain()

    def hang_up(self) -> None:
        """Close the batch's output, as a reader that leaves does."""
        assert self.process.stdout
        self.process.stdout.close()

    def drain(self) -> int:
        """Read the rest of the output; return the exit code."""
        assert self.process.stdout
        if not self.process.stdout.closed:
            self.process.stdout.read()
            self.process.stdout.close()
        return self.process.wait()
