"""Which experiment to run, and which part of it: the options of the command line that choose it."""

from __future__ import annotations

from pathlib import Path

import msgspec

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
            "--resume": _text(self.resume),
        }
        given = [f"{name}={value}" for name, value in values.items() if value]
        return [*given, "--retry-cancelled"] if self.retry_cancelled else given


def _text(path: Path | None) -> str:
    return "" if path is None else str(path)
