"""One reported situation, and the commands that try it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[3]
LIMIT_S = 300.0


@dataclass(frozen=True, slots=True)
class Case:
    """`line` of the issue, such as "B11". `seen` tries it in a folder of its own, which is empty,
    and returns "" if all is as expected, else what was seen instead."""

    line: str
    name: str
    seen: Callable[[Path], str]


class Answer(NamedTuple):
    """What one gatescope command gave back."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """Its stdout as JSON; None if it is none."""
        try:
            return json.loads(self.out)
        except ValueError:
            return None


def gatescope(place: Path, *arguments: object, **env: str) -> Answer:
    """Run gatescope in the folder `place`."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "core.cli", *map(str, arguments)],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def wrong(facts: Mapping[str, bool], answer: Answer) -> str:
    """The names of the facts that do not hold, and the start of what the command said; empty if all
    hold."""
    failing = [name for name, holds in facts.items() if not holds]
    said = " ".join(answer.err.split())[:200]
    return f"not so: {', '.join(failing)}; exit {answer.code}: {said}" if failing else ""
