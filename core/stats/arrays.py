"""Array types by what they hold, whose shapes are named where each is used; and numpy's files."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def load(file: Path | IO[bytes]) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a .npz by name, or the one of a .npy under "". OSError if the file cannot be
    opened, ValueError if it holds anything else."""
    try:
        found = np.load(file, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return {"": found}
        with found:
            return {name: found[name] for name in found.files}
    except OSError:
        raise
    except Exception as error:  # of zipfile, zlib, tokenize, ast and memory, by what is damaged
        raise ValueError(f"not arrays as numpy writes them: {error!r}") from None
