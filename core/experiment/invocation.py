"""Which experiment to run, and which part of it: the options of the command line that choose it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec

from core.experiment.cluster import Executor
from core.experiment.dose import Pattern


class Invocation(msgspec.Struct, frozen=True):
    """What a batch runs: all or a part of a config's experiment, or what the run directory `resume`
    lacks. Empty fields leave the choice to the config."""

    config_path: Path = Path("experiments.toml")
    out: Path | None = None
    only: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    engine: str | None = None
    levels: tuple[float, ...] = ()  # of forced routing
    patterns: tuple[Pattern, ...] = ()
    replay: Path | None = None  # gate logs whose routing is replayed
    settings: dict[str, Any] = {}  # of --set with one value
    axes: dict[str, list[Any]] = {}  # of --set with several: a sweep's
    executor: Executor = "local"
    resume: Path | None = None
    retry_cancelled: bool = False

    def arguments(self) -> list[str]:
        """The same as command-line arguments. `--name=value`, since a value may start with a
        dash."""
        values = {
            "--config": str(self.config_path),
            "--out": _text(self.out),
            "--only": ",".join(self.only),
            "--backend": ",".join(self.backends),
            "--engine": self.engine,
            "--dose": ",".join(map(str, self.levels)),
            "--pattern": ",".join(self.patterns),
            "--replay": _text(self.replay),
            "--executor": "" if self.executor == "local" else self.executor,
            "--resume": _text(self.resume),
        }
        given = [f"{name}={value}" for name, value in values.items() if value]
        given += [f"--set={key}={_toml(value)}" for key, value in self.settings.items()]
        given += [
            f"--set={key}={','.join(map(_toml, values))}" for key, values in self.axes.items()
        ]
        return [*given, "--retry-cancelled"] if self.retry_cancelled else given


def _toml(value: Any) -> str:
    """A value as TOML has it, which --set takes."""
    match value:
        case dict():
            return f"{{{', '.join(f'{_toml(key)} = {_toml(own)}' for key, own in value.items())}}}"
        case list():
            return f"[{', '.join(map(_toml, value))}]"
        case float() if not math.isfinite(value):
            return str(value)
    return msgspec.json.encode(value).decode().replace("\x7f", r"\u007f")


def _text(path: Path | None) -> str:
    return "" if path is None else str(path)
