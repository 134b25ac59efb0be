"""Files of what is on screen: the figure as a PNG, the points of a plot as CSV. Slow: the first PNG
takes a second, so call it off the UI thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from core import files
from core.errors import GatescopeError
from core.plots import png
from core.plots.figure import Figure, Series


def figure(drawn: Callable[[], Figure | Sequence[Figure]], file: Path) -> str:
    """Write the PNG; say where, or why not."""
    try:
        png.write(drawn(), file)
    except (OSError, GatescopeError) as error:
        return f"not written: {error}"
    return f"wrote {file}"


def plot(drawn: Callable[[], Series], csv_text: Callable[[Series], str], file: Path) -> str:
    """Write the PNG and, beside it, the CSV; say where, or why not."""
    try:
        series = drawn()
        png.write(series, file)
        files.write_whole(file.with_suffix(".csv"), csv_text(series).encode())
    except (OSError, GatescopeError) as error:
        return f"not written: {error}"
    return f"wrote {file}, and its points as .csv"
