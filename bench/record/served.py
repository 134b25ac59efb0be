"""A CPU vLLM started by hand, as a user would, with `gatescope record` before it or without."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).parents[2]
START_S, END_S = 900.0, 60.0
CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "0|1"}
FLAGS = ("--dtype", "bfloat16", "--max-model-len", "1024", "--enforce-eager")
RECORD = (sys.executable, "-m", "core.cli", "record")


@dataclass(frozen=True, slots=True)
class Served:
    """A server's process, where it answers, and what it has printed."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def printed(self) -> str:
        return self.log.read_text(errors="replace")

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def wait_ready(self) -> None:
        if not wait_until(lambda: self.is_ready() or self.process.poll() is not None, START_S):
            raise SystemExit(f"the server was not ready after {START_S:g} s: see {self.log}")
        if self.process.poll() is not None:
            raise SystemExit(f"the server ended with {self.process.poll()}: see {self.log}")

    def answer(self, prompt: str, tokens: int = 16) -> str:
        """What it says, greedily."""
        body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        url = f"{self.url}/v1/completions"
        said = httpx.post(url, json=body, timeout=120, trust_env=False).raise_for_status()
        return str(said.json()["choices"][0]["text"])

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; the exit code, as Popen has it."""
        self.process.send_signal(number)
        return self.process.wait(END_S)


def vllm(python: str, model: Path, port: int, *flags: str) -> list[str]:
    """vLLM's API server."""
    program = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    return [*program, "--port", str(port), *FLAGS, *flags]


@contextlib.contextmanager
def serving(command: Sequence[str], port: int, log: Path) -> Iterator[Served]:
    """Run it, and end what is left of it, by process id."""
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **CPU}, stdout=output, stderr=output
        )
    own = psutil.Process(process.pid)
    try:
        yield Served(process, port, log)
    finally:
        left = [*own.children(recursive=True), own] if process.poll() is None else []
        for one in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


def wait_until(holds: object, seconds: float) -> bool:
    """Whether `holds` came true in time."""
    assert callable(holds)
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def checkpoint(folder: Path) -> Path:
    """The built-in engine's trained model, as `gatescope init --model` writes it."""
    model = folder / "model"
    words = [sys.executable, "-m", "core.cli", "init", "--model", str(model)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(
        words, cwd=tempfile.mkdtemp(dir=folder), env=env, check=True, stderr=subprocess.DEVNULL
    )
    return model
