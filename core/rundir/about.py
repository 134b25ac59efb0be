"""run.json: what was asked for, with which versions, on which machine, and what really ran."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from msgspec import Struct

from core import files
from core.errors import FileError
from core.experiment.config import Config
from core.experiment.plan import Run
from core.experiment.registration import Registration
from core.experiment.tables import Name
from core.recorder.gatescope_recorder.kernel import Kernel

NAME = "run.json"


class Host(Struct, frozen=True, kw_only=True):
    name: str | None = None
    system: str
    cpus: int | None


class Git(Struct, frozen=True, kw_only=True):
    """The state of the directory that holds the config; `commit` is None outside a repository."""

    commit: str | None = None
    changed_files: int = 0


class ServerNote(Struct, frozen=True, kw_only=True):
    """A server's command line, what it reported of itself, and where that is not what was
    requested."""

    command: list[str] = []
    ran: dict[str, str] = {}
    mismatches: list[str] = []
    kernel: Kernel | None = None  # of its experts, as the gate log's header has it


class About(Struct, frozen=True, kw_only=True):
    """The whole file. It rules on resume, whatever experiments.toml says by then."""

    config: Config
    engine: str  # as every screen and file names it
    engine_kind: Literal["vllm", "builtin"]
    backends: list[Name]  # those that were to be run, in order
    started: str  # UTC, ISO 8601
    versions: dict[str, str]
    python: str
    host: Host
    gpus: list[str]  # a line each: index, name, memory, driver
    git: Git | None = None
    runs: list[Run]  # each with its start
    registered: Registration | None = None  # before the first run
    servers: dict[str, ServerNote] = {}


def read(path: Path) -> About:
    """run.json of the run directory `path`. FileError if it is none."""
    if not (path / NAME).is_file():
        raise FileError(f"{path}: not a run directory: {NAME} is expected in it")
    return files.read(path / NAME, About)
