"""Which engine serves: vLLM where it is wanted and can be had, else the built-in one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from core import provenance
from core.backends import builtin
from core.backends.launch import Launcher
from core.config import Backend, ConfigError

Kind = Literal["vllm", "builtin"]


def decide(wanted: Literal["auto", "vllm", "builtin"], backends: Sequence[Backend]) -> Kind:
    """`auto` is vllm where every backend's interpreter has it and there are GPUs enough for the largest backend."""
    if wanted != "auto":
        return wanted
    enough = len(provenance.gpus()) >= max(backend.ranks for backend in backends)
    return "vllm" if enough and _vllm_everywhere(backends) else "builtin"


def launcher(kind: Kind) -> Launcher:
    """The module that knows how to serve. ConfigError where this version cannot."""
    if kind == "vllm":
        raise ConfigError('engine "vllm" cannot be launched by this version yet; use --engine builtin')
    return builtin


def _vllm_everywhere(backends: Sequence[Backend]) -> bool:
    return False
