"""The smallest run.json that gatescope reads back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.experiment.config import Config
from core.experiment.tables import Experiment, Model
from core.rundir.about import About, Host


def about(**more: Any) -> About:
    """run.json of an experiment with the backend `baseline`, not run yet."""
    config = Config(
        path=Path("experiments.toml"),
        experiment=Experiment(),
        model=Model(),
        backends=(),
        dataset_paths=(),
    )
    fields: dict[str, Any] = {
        "config": config,
        "engine": "e",
        "engine_kind": "builtin",
        "backends": ["baseline"],
        "started": "2026-01-01T00:00:00+00:00",
        "versions": {},
        "python": "3.11",
        "host": Host(system="Linux", cpus=2),
        "gpus": [],
        "runs": [],
    }
    return About(**fields | more)
