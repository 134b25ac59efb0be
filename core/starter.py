"""What a directory without a checkout needs: experiments.toml and the data sets, carried by the wheel."""

from __future__ import annotations

import shutil
from pathlib import Path

from core.config import ConfigError

QUERIES = "domain_queries.json"


def root() -> Path:
    """The folder that holds experiments.toml and datasets/: inside the wheel, or the checkout's root."""
    packed = Path(__file__).parent / "starter_files"
    return packed if packed.is_dir() else Path(__file__).parents[1]


def queries_file(folder: Path) -> Path:
    """The query file of `folder`, else the one that gatescope carries."""
    own = folder / QUERIES
    return own if own.is_file() else root() / "datasets" / QUERIES


def write(folder: Path) -> list[Path]:
    """Write experiments.toml and datasets/ into `folder`. ConfigError where either is there already."""
    for name in ("experiments.toml", "datasets"):
        if (folder / name).exists():
            raise ConfigError(f"{(folder / name).resolve()} is there already; init writes into a directory without it")
    shutil.copyfile(root() / "experiments.toml", folder / "experiments.toml")
    shutil.copytree(root() / "datasets", folder / "datasets")
    return [folder / "experiments.toml", folder / "datasets"]
