"""A built-in server in its own process, on a free port, for as long as a test needs it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Timer
from typing import Any

import httpx
import psutil

DEADLINE_S = 30.0  # for things that take well under a second on a quiet machine
KEY = "secret"


@dataclass(frozen=True, slots=True)
class Running:
    """The server's process, and a client that knows its key."""

    process: subprocess.Popen[str]
    client: httpx.Client

    @property
    def url(self) -> str:
        return str(self.client.base_url)

    def ranks(self) -> list[psutil.Process]:
        """The processes of ranks 1 and up."""
        children: list[psutil.Process] = psutil.Process(self.process.pid).children()
        return children

    def post(self, **fields: Any) -> httpx.Response:
        """A completion, without a stream."""
        return self.client.post("/v1/completions", json=fields)

    @contextlib.contextmanager
    def stream(
        self, path: str = "/v1/completions", **fields: Any
    ) -> Iterator[Iterator[dict[str, Any]]]:
        """The events of a stream as they arrive; the last one must be [DONE]. Leaving early closes
        the connection."""
        with self.client.stream("POST", path, json={**fields, "stream": True}) as response:
            assert response.status_code == 200, response.read()
            yield events(response)

    def metric(self, name: str, **labels: str) -> float:
        """One value of /metrics."""
        wanted = "".join(f',{key}="{value}"' for key, value in labels.items())
        start = f'vllm:{name}{{engine="0",model_name="builtin"{wanted}}} '
        (line,) = [
            line for line in self.client.get("/metrics").text.splitlines() if line.startswith(start)
        ]
        return float(line.removeprefix(start))

    def end(self) -> tuple[int, str]:
        """Wait until the process ends; its exit code, and what it printed after "ready"."""
        printed, _ = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, printed


def events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The data of each event up to [DONE]."""
    for line in response.iter_lines():
        if line == "data: [DONE]":
            return
        if line:
            yield json.loads(line.removeprefix("data: "))
    raise AssertionError("the stream ended before [DONE]")


@contextlib.contextmanager
def server(*options: object) -> Iterator[Running]:
    """Start a server, wait until it is ready, and kill what is left of it at the end."""
    command = [sys.executable, "-m", "core.builtin.server", "--port", "0", *map(str, options)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "VLLM_API_KEY": KEY},
        start_new_session=True,  # a process group of its own, as under a supervisor
    )
    try:
        with httpx.Client(
            base_url=_url(process),
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=DEADLINE_S,
            trust_env=False,
        ) as client:
            yield Running(process, client)
    finally:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


def _url(process: subprocess.Popen[str]) -> str:
    """The URL in the server's ready line."""
    watchdog = Timer(DEADLINE_S, process.kill)
    watchdog.start()
    printed = []
    assert process.stdout
    while line := process.stdout.readline():
        printed.append(line)
        if line.startswith("ready: "):
            watchdog.cancel()
            return line.removeprefix("ready: ").strip()
    raise AssertionError("the server ended before it was ready: " + "".join(printed))


def eventually(holds: Callable[[], bool]) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
