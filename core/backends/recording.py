"""Recording a vLLM that gatescope does not configure: what its environment needs, and why a command
might not be recorded."""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from core.backends import vllm
from core.errors import BackendError

KEEPS_ITS_OWN = ("docker", "podman", "nerdctl", "kubectl", "ssh", "sudo")  # environment
SHEBANG = re.compile(rb"#!\s*(?:\S*/env\s+(?:-S\s+)?)?(\S*python[\d.]*)\b")
LONG_SHEBANG = re.compile(rb"#!/bin/sh\n'''exec' ['\"]?([^'\"\n]+?python[\d.]*)['\"]? ")  # pip's


def doubt(command: Sequence[str]) -> str:
    """Why `command` may not be recorded, as far as its program shows; empty if nothing speaks
    against it."""
    program = shutil.which(command[0])
    if program is None:
        return ""  # it will not run either
    if (name := Path(program).name) in KEEPS_ITS_OWN:
        return (
            f"{name} does not pass its environment on; run gatescope record where the server runs,"
            " around the server itself"
        )
    python = _interpreter(program)
    if not python:
        return ""
    if python == program and (option := _isolating(command[1:])):
        return f"Python's {option} ignores PYTHONPATH, by which the recorder comes in"
    return "" if _is_ours(command) else _without_vllm(python)


def _is_ours(command: Sequence[str]) -> bool:
    """Whether it is gatescope: the servers that it starts are recorded."""
    modules = [word for option, word in itertools.pairwise(command) if option == "-m"]
    is_module = bool(modules) and modules[0].startswith("core.")
    return is_module or Path(command[0]).name == "gatescope"


def _interpreter(program: str) -> str:
    """The Python that runs `program`, or is it; empty if none is named."""
    if re.fullmatch(r"python[\d.]*", Path(program).name):
        return program
    try:
        with open(program, "rb") as file:
            head = file.read(1024)
    except OSError:
        return ""
    found = SHEBANG.match(head) or LONG_SHEBANG.match(head)
    return (shutil.which(os.fsdecode(found[1])) or "") if found else ""


def _isolating(words: Sequence[str]) -> str:
    """-I or -E among the interpreter's own options."""
    for word in words:
        if not word.startswith("-") or word in ("-c", "-m", "-"):
            return ""
        if not word.startswith("--") and (set(word) & {"I", "E"}):
            return word
    return ""


def _without_vllm(python: str) -> str:
    try:
        found = vllm.find(python)
    except BackendError as error:
        return str(error)
    if found is None:
        return f"{python} has no vLLM; another Python that it starts is recorded"
    if not found.hook or (found.release is not None and found.release < vllm.OLDEST):
        return f"vLLM {found.version} has no router that gatescope knows; 0.11 or newer is needed"
    return ""
