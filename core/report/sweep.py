"""The report of a sweep: its matrix, what was searched for, its figures, and each cell's report."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from core.analysis import cells, comparand, limits
from core.analysis.matrix import Entry, entries, swept
from core.errors import NoDataError
from core.experiment.cell import shown
from core.files import write_whole
from core.report import limit, matrix
from core.report.document import code, heading, items, markdown, picture, table
from core.report.page import page
from core.rundir import sweep
from core.rundir.sweep import SweepFile

TITLE = "Sweep"


def write(path: Path) -> list[Path]:
    """report.md and report.html in the sweep's folder, and its figures. FileError if it is none."""
    asked = sweep.read(path)
    text = markdown(list(_parts(path, asked)))
    files = {"report.md": text, "report.html": page(f"{TITLE}: {asked.name}", text, path)}
    for name, content in files.items():
        write_whole(path / name, content.encode())
    return [path / name for name in files]


def _parts(path: Path, asked: SweepFile) -> Iterator[str]:
    states = cells.read_all(path, asked)
    found = entries(asked, states)
    yield heading(f"{TITLE}: {asked.name}", 1)
    answers = [limits.limit(base, asked, states) for base in asked.bases]
    if answers:
        yield heading("Limits")
        yield items([one.in_words for one in answers])
        yield code("\n".join(limit.lines(answers)).rstrip())
    yield heading("Cells")
    yield code("\n".join(matrix.lines(asked, found)))
    keys = swept(found)
    yield table(["cell", "state", "starts", *keys], [_row(one, keys) for one in found])
    yield from _pictures(path)
    yield heading("Reports of the cells")
    yield "\n".join(
        f"- [{entry.cell}]({sweep.CELLS}/{entry.cell}/report.md)"
        for entry in found
        if (path / sweep.CELLS / entry.cell / "report.md").is_file()
    )


def _row(one: Entry, keys: list[str]) -> list[str]:
    values = [shown(one.settings[key]) if key in one.settings else "–" for key in keys]
    return [one.cell, one.state, str(one.starts), *values]


def _pictures(path: Path) -> Iterator[str]:
    from core.plots import cells as figures
    from core.plots import png
    from core.plots.figure import marked
    from core.validity import verdict

    with contextlib.suppress(NoDataError):
        found = comparand.read(path)
        invalid = verdict.invalid_rules(found)
        drawn = [marked(panel, invalid) for panel in figures.pareto(found, "mean_tpot_ms")]
        png.write(drawn, path / "graphs" / "pareto.png")
        yield heading("Throughput against latency")
        yield picture("graphs/pareto.png", drawn[0].title, drawn[0].note)
        panels = [marked(panel, invalid) for panel in figures.against_load(found)]
        png.write(panels, path / "graphs" / "load.png")
        yield heading("Imbalance against load")
        yield picture("graphs/load.png", "imbalance against load", panels[0].note)
