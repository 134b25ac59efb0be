"""Files: JSON read with an error that names the file, and written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from core.errors import FileError

NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not the JSON it was asked for."""
T = TypeVar("T")


def read(file: Path, kind: type[T]) -> T:
    """One JSON file as a `kind`. FileError if it cannot be read, or is something else."""
    return read_by(file, lambda data: msgspec.json.decode(data, type=kind, dec_hook=path_hook))


def read_by(file: Path, decode: Callable[[bytes], T]) -> T:
    """What `decode` makes of a file's bytes. FileError as `read`."""
    try:
        return decode(file.read_bytes())
    except OSError as error:
        raise FileError(f"{file}: cannot be read: {error.strerror}") from None
    except msgspec.ValidationError as error:
        raise FileError(f"{file}: not as gatescope writes it: {error}") from None
    except NOT_JSON as error:
        raise FileError(f"{file}: not JSON: {error}") from None


def with_constants(data: bytes) -> Any:
    """JSON with NaN, Infinity and -Infinity in it, as Python's json writes them, and in any UTF;
    None if it is something else."""
    try:
        found = json.loads(data)
        json.dumps(found, ensure_ascii=False).encode()  # no half of a character
    except (ValueError, RecursionError):
        return None
    return found


def is_finite(value: object) -> bool:
    """False for NaN and the infinities, true for anything else."""
    return not isinstance(value, float) or math.isfinite(value)


def path_hook(kind: type, value: Any) -> Any:
    """msgspec's dec_hook: the one type in our files that JSON lacks is a path, written as a
    string."""
    if kind is not Path or not isinstance(value, str):
        raise ValueError(f"Expected a path, got {value!r}")
    return Path(value)


def formatted(value: Any) -> bytes:
    """JSON as it stands in files: indented, with a newline at its end."""
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=1) + b"\n"


def write_whole(file: Path, data: bytes) -> None:
    """Write under a temporary name and rename: `file` is whole or not there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(file.name + ".tmp")
    with or_nothing(temporary):
        with open(temporary, "wb", opener=_private) as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, file)


@contextlib.contextmanager
def or_nothing(temporary: Path) -> Iterator[None]:
    """Remove what could not be written whole: it takes room on a full disk."""
    try:
        yield
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def cache() -> Path:
    """Where gatescope keeps what it has measured of this machine, for later runs. FileError for a
    user without a home directory."""
    for place in (os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~/.cache")):
        if os.path.isabs(place):
            return Path(place) / "gatescope"
    raise FileError("no home directory to keep measurements in; set XDG_CACHE_HOME")


def _private(name: str, flags: int) -> int:
    """Opens for the owner only: run.json holds the servers' environment."""
    return os.open(name, flags, 0o600)
