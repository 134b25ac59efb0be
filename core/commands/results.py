"""Where `gatescope bench` writes its result: under a name that no other result has."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from core.errors import FileError
from core.terminal import complain


def check(folder: Path, index: str) -> None:
    """FileError if the folder cannot be written to, or has a result of this dataset already."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise FileError(
            f"--result-dir {folder}: cannot be written to: {error.strerror}; choose another folder"
        ) from None
    if (file := folder / f"{index}.json").exists():
        raise FileError(
            f"{file} is there already, from another run; give each run a --result-dir of its own"
        )


def write(folder: Path, index: str, data: bytes, *, is_partial: bool) -> Path | None:
    """Write a result; its file. Where the folder has filled up or gone: to the folder for temporary
    files, and None."""
    from core import files

    kind = ".partial.json" if is_partial else ".json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _reserved(folder, index, kind)
        files.write_whole(file, data)
        return file
    except OSError as error:
        handle, other = tempfile.mkstemp(prefix=f"gatescope-{index}-", suffix=kind)
        with open(handle, "wb") as out:
            out.write(data)
        complain(f"{folder}: cannot be written to: {error.strerror}; the result is in {other}")
        return None


def _reserved(folder: Path, index: str, kind: str) -> Path:
    """A new file, named like the next repeat where another run has written meanwhile."""
    repeat = 1
    while True:
        name = f"{index}{kind}" if repeat == 1 else f"{index}-r{repeat}{kind}"
        try:
            os.close(os.open(folder / name, os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            repeat += 1
        else:
            return folder / name
