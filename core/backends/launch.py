"""What starting one server takes, whichever engine serves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from core.experiment.tables import Backend, Model


@dataclass(frozen=True, slots=True)
class Launch:
    """The command of one server start, and what its clients must know. The API key is added when it
    is started."""

    command: list[str]
    env: dict[str, str]  # added to the environment
    model: str  # the name that requests carry
    tokenizer: str  # a hub name, a folder, or "bytes"
    engine: str  # as it is shown: "vllm 0.25.1", or "builtin (NumPy, CPU)"
    temperature: float = 0.0  # what temperature = "auto" stands for


class Launcher(Protocol):
    """What each engine's module offers."""

    def launch(self, backend: Backend, model: Model, gate_logs: Path | None, seed: int) -> Launch:
        """How to serve `model` as `backend` asks. `gate_logs`: a folder for this start's logs;
        None: no log."""

    def ran(
        self, version: dict[str, str], log: Path, since: int = 0, gate_logs: Path | None = None
    ) -> dict[str, str]:
        """What is running: from /version, from what the server's workers wrote into the folder
        `gate_logs`, and from its log, whose lines begin at `since`."""

    def mismatches(self, backend: Backend, ran: dict[str, str]) -> list[str]:
        """What is running but was not requested, a sentence each."""

    def warmup_input_lens(self, backend: Backend, model: Model) -> tuple[int, ...]:
        """Lengths in tokens of prompts to send before measuring, one at a time: the server compiles
        a kernel at each."""

    def warmup_skipped(self, backend: Backend, model: Model) -> str:
        """Why such prompts cannot be known although they are needed; empty otherwise."""


def as_words(options: Mapping[str, str | int]) -> list[str]:
    """Options as a command line takes them: a flag alone if True, left out if False or empty."""
    words: list[str] = []
    for flag, value in options.items():
        if value is True:
            words.append(flag)
        elif value is not False and value != "":
            words += [flag, str(value)]
    return words
