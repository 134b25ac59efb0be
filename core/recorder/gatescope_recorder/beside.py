"""Small files beside the logs.

This module runs inside vLLM's workers too: standard library only.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def write(path: Path, text: str) -> None:
    """`text` in place of what the file has: whole, or as it was. Where the disk is full, over what
    is there, which needs no room: that a full disk ended the recording must be said. OSError."""
    temporary, data = path.with_name(path.name + ".tmp"), text.encode()
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        with open(path, "r+b", buffering=0) as file:
            file.write(data)
            file.truncate()
