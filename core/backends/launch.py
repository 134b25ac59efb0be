"""What starting one server takes, whichever engine serves."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Launch:
    """The command of one server start, and what its clients must know. The API key is added when it is started."""

    command: list[str]
    env: dict[str, str]  # added to the environment
    model: str  # the name that requests carry
    tokenizer: str  # a hub name, a folder, or "bytes"
    engine: str  # as it is shown: "vllm 0.25.1", or "builtin (NumPy, CPU)"
