"""The files to start with, which the wheel contains: experiments.toml, its JSON Schema for editors,
and the datasets."""

from __future__ import annotations

import shutil
from pathlib import Path

from core.errors import FileError

QUERIES = "domain_queries.json"
FILES = ("experiments.toml", "experiments.schema.json")


def root() -> Path:
    """The folder that holds experiments.toml and datasets/: inside the wheel, or the checkout's
    root."""
    packed = Path(__file__).parents[1] / "starter_files"
    return packed if packed.is_dir() else Path(__file__).parents[2]


def queries_file(folder: Path) -> Path:
    """The query file in `folder`, else the one that comes with gatescope."""
    own = folder / QUERIES
    return own if own.is_file() else root() / "datasets" / QUERIES


def write(folder: Path) -> list[Path]:
    """Write experiments.toml, its schema and datasets/ into `folder`. FileError if one exists or
    cannot be written."""
    for name in (*FILES, "datasets"):
        if (folder / name).exists():
            raise FileError(
                f"{(folder / name).resolve()} exists; run init in a directory without it"
            )
    try:
        # copyfile, without modes: an installation may be read-only, the user's copy must not be.
        shutil.copytree(root() / "datasets", folder / "datasets", copy_function=shutil.copyfile)
        for name in FILES:
            shutil.copyfile(root() / name, folder / name)
    except OSError as error:
        raise FileError(
            f"{folder.resolve()}: cannot be written: {error.strerror or error}"
        ) from None
    return [folder / name for name in (*FILES, "datasets")]
