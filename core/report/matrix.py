"""The matrix of a sweep's cells, as text and as files."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from core.analysis.matrix import Entry, grid, notes, swept, title
from core.files import formatted, write_whole
from core.rundir.sweep import SweepFile


def lines(asked: SweepFile, found: Sequence[Entry]) -> Iterator[str]:
    """The matrix as text."""
    yield title(asked)
    made = grid(found)
    rows = [[*key, *(e.text if e else "–" for e in own)] for key, own in made.rows.items()]
    yield from _aligned([[*made.head, *made.columns], *rows])
    yield from notes(found)


def write(path: Path, found: Sequence[Entry]) -> list[Path]:
    """matrix.csv and matrix.json in the sweep's folder."""
    keys = swept(found)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    fields = ("cell", "backend", "state", "metric", "value", "low", "high", "starts", "datasets")
    writer.writerow([*fields, *keys])
    for e in found:
        low, high = e.interval or (None, None)
        own = (e.cell, e.backend, e.state, e.metric, e.value, low, high, e.starts, e.datasets)
        writer.writerow([*own, *(e.settings.get(key) for key in keys)])
    contents = {"matrix.csv": out.getvalue().encode(), "matrix.json": formatted(found)}
    for name, data in contents.items():
        write_whole(path / name, data)
    return [path / name for name in contents]


def _aligned(table: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in itertools.zip_longest(*table, fillvalue="")]
    for row in table:
        cells = zip(row, widths, strict=False)
        yield "  " + "  ".join(f"{text:<{width}}" for text, width in cells).rstrip()
