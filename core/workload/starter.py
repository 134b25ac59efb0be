"""The files to start with, which the wheel contains: experiments.toml, its JSON Schema for editors,
the datasets, and the built-in engine's model."""

from __future__ import annotations

import shutil
from pathlib import Path

from core.errors import FileError

QUERIES = "domain_queries.json"
FILES = ("experiments.toml", "experiments.schema.json")
CHECKPOINT = Path(__file__).parents[1] / "builtin" / "tiny_mixtral"  # core.builtin.checkpoint's


def root() -> Path:
    """The folder that holds experiments.toml and datasets/: inside the wheel, or the checkout's
    root."""
    packed = Path(__file__).parents[1] / "starter_files"
    return packed if packed.is_dir() else Path(__file__).parents[2]


def queries_file(folder: Path) -> Path:
    """The query file in `folder`, else the one that comes with gatescope."""
    own = folder / QUERIES
    return own if own.is_file() else root() / "datasets" / QUERIES


def write(folder: Path, model: Path | None = None) -> list[Path]:
    """Write experiments.toml, its schema and datasets/ into `folder`, and the built-in engine's
    model as a checkpoint to `model`. FileError if one exists or cannot be written."""
    written = [folder / name for name in (*FILES, "datasets")]
    for path in written:
        if path.exists():
            raise FileError(f"{path.resolve()} exists; run init in a directory without it")
    if model:
        _check_new(model, written)
        _copy(CHECKPOINT, model)
    _copy(root() / "datasets", folder / "datasets")
    for name in FILES:
        _copy(root() / name, folder / name)
    return [*written, model] if model else written


def _check_new(model: Path, others: list[Path]) -> None:
    """FileError if the folder holds something, or is where `others` are to be."""
    is_free = not model.exists() or (model.is_dir() and not any(model.iterdir()))
    if not is_free or model.resolve() in [path.resolve() for path in others]:
        raise FileError(f"--model {model}: expected a new or empty folder; name another")


def _copy(source: Path, target: Path) -> None:
    """Copy a file or a folder. FileError if the target cannot be written."""
    try:
        # copyfile, without modes: an installation may be read-only, the user's copy must not be.
        if source.is_dir():
            shutil.copytree(source, target, copy_function=shutil.copyfile, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, target)
    except OSError as error:
        folder = target.parent.resolve()
        raise FileError(f"{folder}: cannot be written: {error.strerror or error}") from None
