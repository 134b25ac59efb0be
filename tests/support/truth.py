"""The truth server of bench/client as an oracle: a server with known token times."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

SERVER = Path(__file__).parents[2] / "bench" / "client" / "truth_server.py"


class Truth:
    """A running truth server; the flags are those of its command line."""

    def __init__(self, *flags: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(SERVER), "--port", "0", *flags], stderr=subprocess.PIPE, text=True
        )
        assert self._process.stderr is not None
        line = self._process.stderr.readline()  # truth_server on HOST:PORT pid PID
        self.url = "http://" + line.split()[2]

    def control(self, **fields: Any) -> None:
        """Change the schedule of the next requests, and forget the records so far."""
        body = json.dumps({**fields, "reset": True}).encode()
        urllib.request.urlopen(urllib.request.Request(self.url + "/control", data=body)).close()

    def rows(self) -> dict[str, dict[str, Any]]:
        """The server's record of each request, by X-Request-Id."""
        with urllib.request.urlopen(self.url + "/truth") as answer:
            rows = [json.loads(line) for line in answer.read().splitlines()]
        return {row["id"]: row for row in rows}

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()
