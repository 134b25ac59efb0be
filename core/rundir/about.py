"""run.json, read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from core.errors import FileError
from core.experiment.config import Config, Name
from core.experiment.plan import Run
from core.files import read_json


class _Host(msgspec.Struct):
    system: str
    cpus: int | None


class _Server(msgspec.Struct):
    ran: dict[str, str] = {}
    mismatches: list[str] = []


class _Facts(msgspec.Struct):
    """The part of run.json that a report takes apart."""

    engine: str
    backends: list[Name]
    started: str
    versions: dict[str, str]
    host: _Host
    gpus: list[str]
    servers: dict[str, _Server]
    runs: list[Run]
    git: dict[str, str | int | None] | None = None


class _Names(msgspec.Struct):
    engine: str
    backends: list[Name]


def read_names(path: Path) -> tuple[list[str], str]:
    """The backends that run.json says were run, in order, and the engine's name. FileError where it
    does not."""
    try:
        found = _checked(path / "run.json", _Names)
    except FileError as error:
        raise FileError(f"{path}: not a run directory: {error}") from None
    return list(found["backends"]), str(found["engine"])


def read_facts(path: Path) -> dict[str, Any]:
    """run.json of a run directory as it stands. FileError where it does not hold what a report
    tells."""
    return _checked(path / "run.json", _Facts)


def _checked(file: Path, kind: type[msgspec.Struct]) -> dict[str, Any]:
    """A JSON object that has the shape of `kind`, whatever else is in it."""
    found = read_json(file)
    try:
        msgspec.convert(found, kind)
    except msgspec.ValidationError as error:
        raise FileError(f"{file}: not as gatescope writes it: {error}") from None
    return found


class About(msgspec.Struct, frozen=True, kw_only=True):
    """The part of run.json that rules on resume, whatever experiments.toml says by then."""

    config: Config
    engine_kind: Literal["vllm", "builtin"]
    runs: list[Run]


def read_about(path: Path) -> About:
    """run.json of a run directory. FileError where it is not one."""
    raw = read_json(path / "run.json")
    try:
        return msgspec.convert(raw, About, dec_hook=_path)
    except msgspec.ValidationError as error:
        raise FileError(f"{path / 'run.json'}: does not say what was run: {error}") from None


def _path(kind: type[Path], value: Any) -> Path:
    """What is no JSON type in a config is a path, written as a text."""
    if not isinstance(value, str):
        raise ValueError(f"Expected a path, got {value!r}")
    return kind(value)
