"""Tensors of a file that torch.save wrote, without torch: nothing of the file is run.

Such a file is a zip of a pickle (`data.pkl`) and the bytes of each storage (`data/<key>`). The
unpickler knows dicts, lists, numbers, texts and dense tensors on any device, and refuses all else.
"""

from __future__ import annotations

import io
import pickle
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core.errors import GateLogError

STORAGES = {
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
    "HalfStorage": "f2",
    "FloatStorage": "f4",
    "DoubleStorage": "f8",
}
MAX_BYTES = 1 << 34
UNREADABLE = (
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    EOFError,
    zlib.error,
    NotImplementedError,  # a version or a compression that zipfile lacks
    RuntimeError,  # an encrypted archive
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError),
)


@dataclass(frozen=True, slots=True)
class _Kind:
    """A storage class of torch, by its element."""

    dtype: str


def read(path: Path) -> Any:
    """The object in a file, its tensors as arrays. GateLogError if it holds anything else."""
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_BYTES:
                raise ValueError(f"more than {MAX_BYTES} bytes")
            (name,) = (n for n in archive.namelist() if n.endswith("/data.pkl"))
            return _Reader(archive, name).load()
    except OSError as error:
        raise GateLogError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UNREADABLE as error:
        raise GateLogError(f"{path}: not a file of tensors by torch.save: {error}") from None


class _Reader(pickle.Unpickler):
    """Finds only what a dense tensor is made of."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        super().__init__(io.BytesIO(archive.read(name)))
        self._archive, self._place = archive, name.removesuffix("data.pkl")
        order = f"{self._place}byteorder"
        is_big = order in archive.namelist() and archive.read(order) == b"big"
        self._order = ">" if is_big else "<"

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in STORAGES:
            return _Kind(STORAGES[name])
        raise pickle.UnpicklingError(f"it holds a {module}.{name}")

    def persistent_load(self, pid: Any) -> npt.NDArray[Any]:
        tag, kind, key, _device, count = pid
        if tag != "storage" or not isinstance(kind, _Kind):
            raise pickle.UnpicklingError(f"it holds a {tag!r}")
        data = self._archive.read(f"{self._place}data/{key}")
        return np.frombuffer(data, f"{self._order}{kind.dtype}", int(count))


def _tensor(
    storage: npt.NDArray[Any], offset: int, size: Sequence[int], stride: Sequence[int], *_: Any
) -> npt.NDArray[Any]:
    """A copy of the elements that a tensor names in its storage."""
    if not 0 <= offset <= len(storage) or len(size) != len(stride) or min((*size, *stride, 0)) < 0:
        raise ValueError(f"a tensor of impossible shape {size}")
    if 0 in size:
        return np.zeros(size, storage.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= len(storage) or np.prod([float(n) for n in size]) > MAX_BYTES:
        raise ValueError(f"a tensor of shape {size} beyond its storage")
    places = np.full(tuple(size), offset)
    for axis, step in enumerate(stride):
        shape = [1] * len(size)
        shape[axis] = size[axis]
        places += (np.arange(size[axis]) * step).reshape(shape)
    return np.asarray(storage[places])
