"""The forced routing that options of the command line ask for, in place of [dose]'s."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from core.errors import ConfigError
from core.experiment.config import Config, dose_problems
from core.experiment.dose import Pattern
from core.experiment.tables import Forcing


def with_doses(
    loaded: Config, levels: list[float], patterns: list[Pattern], replay: Path | None = None
) -> Config:
    """`loaded` with the levels, patterns and gate logs of --dose, --pattern and --replay, where
    given, in place of [dose]'s. --replay alone adds no levels. ConfigError as `load`."""
    logs = "" if replay is None else os.path.abspath(os.path.expanduser(replay))
    values = (("levels", levels), ("patterns", patterns), ("replay", logs))
    given = {key: value for key, value in values if value}
    if not given:
        return loaded
    none = Forcing(levels=[]) if replay and not patterns else Forcing()
    dose: Forcing = msgspec.structs.replace(loaded.dose or none, **given)
    if wrong := [f"{', '.join(('--dose', *keys))}: {text}" for keys, text in dose_problems(dose)]:
        raise ConfigError("\n".join(wrong))
    return msgspec.structs.replace(loaded, dose=dose)
