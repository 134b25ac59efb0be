"""What starting one server takes, whichever engine serves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from core.experiment.config import Backend, Model


@dataclass(frozen=True, slots=True)
class Launch:
    """The command of one server start, and what its clients must know. The API key is added when it
    is started."""

    command: list[str]
    env: dict[str, str]  # added to the environment
    model: str  # the name that requests carry
    tokenizer: str  # a hub name, a folder, or "bytes"
    engine: str  # as it is shown: "vllm 0.25.1", or "builtin (NumPy, CPU)"


class Launcher(Protocol):
    """What each engine's module knows of it."""

    def launch(self, backend: Backend, model: Model, gate_logs: Path | None, seed: int) -> Launch:
        """How to serve `model` as `backend` asks. `gate_logs`: a folder for this start's logs;
        None: no log."""

    def ran(self, version: dict[str, str], log: Path) -> dict[str, str]:
        """What really ran: from /version and the server's log."""

    def mismatches(self, backend: Backend, ran: dict[str, str]) -> list[str]:
        """Asked ≠ ran, a sentence each."""

    def warmup_input_lens(self, backend: Backend, model: Model) -> tuple[int, ...]:
        """Tokens of prompts that a server meets before it is measured, each alone in its step: it
        compiles a kernel at each."""
