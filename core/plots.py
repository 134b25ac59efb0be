"""A Series → plotext text, and a PNG of the same data. matplotlib and plotext are imported where they draw."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from core.analysis import Series

# Okabe-Ito blue and vermillion first: told apart by the colour-blind, and by their marks.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
PNG_MARKS = ("o", "x", "s", "^")
TEXT_MARKS = ("o", "x", "#", "^")
TEXT_COLOURS = ("blue", "orange", "green", "magenta")
ANSI = re.compile(r"\x1b\[[0-9;]*m")
MIN_COLUMNS, MIN_ROWS = 20, 6


def text(series: Series, columns: int, rows: int, *, colour: bool) -> str:
    """The scatter as text of at most `columns` × `rows` cells; ANSI colours if `colour`."""
    if columns < MIN_COLUMNS or rows < MIN_ROWS:
        return f"{series.title}: needs {MIN_COLUMNS}×{MIN_ROWS} cells"
    import plotext

    plotext.terminal.limit(False, False)
    figure = plotext.figure
    figure.clear()
    figure.plot_size(columns, rows)
    figure.theme("simple" if colour else "colorless")
    for place, group in enumerate(series.groups):
        if group.kept.any():
            signal = figure.signal(
                group.x[group.kept].tolist(), group.y[group.kept].tolist(), marker=TEXT_MARKS[place % 4]
            )
            figure.draw(signal.label(group.name))
    shown_x, shown_y = _shown(series)
    figure.ruler("x").ticks(*_ticks(shown_x))
    figure.ruler("y").ticks(*_ticks(shown_y))
    drawn = str(figure.build().string()).rstrip("\n")
    if not colour:
        drawn = ANSI.sub("", drawn)
    engine = f" · engine: {series.engine}" if series.engine else ""
    return f"{series.y_label} (up) against {series.x_label} (right)\n{series.note}{engine}\n{drawn}"


def png(series: Series, file: Path) -> Path:
    """Write the scatter as a PNG; its folder is made where missing."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, group in enumerate(series.groups):
        axes.scatter(
            group.x[group.kept],
            group.y[group.kept],
            marker=PNG_MARKS[place % 4],
            color=COLOURS[place % 4],
            label=f"{group.name} (n = {int(group.kept.sum())})",
            alpha=0.85,
        )
    axes.set_title(series.title)
    axes.set_xlabel(f"{series.x_label}\n{series.note}")
    axes.set_ylabel(series.y_label)
    axes.grid(alpha=0.3)
    axes.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    return file


def histogram_text(values: Sequence[float], columns: int, label: str) -> str:
    """A distribution as text: one row a bin of 0.05, a bar of its count."""
    edges = np.arange(0.0, 1.0001, 0.05)
    counts, _ = np.histogram(values, edges)
    used = np.flatnonzero(counts)
    if not len(used):
        return f"{label}: nothing to draw"
    widest = max(int(counts.max()), 1)
    rows = [
        f"{edges[i]:.2f}–{edges[i + 1]:.2f} {'█' * round(counts[i] / widest * max(columns - 20, 10))} {counts[i]}"
        for i in range(used[0], used[-1] + 1)
    ]
    return "\n".join([f"{label} (n = {len(values)})", *rows])


def histogram_png(values: Sequence[float], file: Path, label: str) -> Path:
    """The same distribution as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.hist(values, bins=np.arange(0.0, 1.0001, 0.05).tolist(), color=COLOURS[0], edgecolor="white")
    axes.set_title(f"{label} (n = {len(values)})")
    axes.set_xlabel(label)
    axes.set_ylabel("data sets")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    return file


def _shown(series: Series) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    groups = series.groups
    return np.concatenate([g.x[g.kept] for g in groups]), np.concatenate([g.y[g.kept] for g in groups])


def _ticks(values: npt.NDArray[np.float64]) -> tuple[list[float], list[str]]:
    """Five even ticks with plain decimals; plotext's own read "1.1e2"."""
    low, high = float(values.min()), float(values.max())
    places = np.linspace(low, high, 5) if high > low else np.array([low])
    digits = max(0, 2 - int(np.floor(np.log10(max(abs(high - low), 1e-9)))) - 1) + 1
    return places.tolist(), [f"{p:.{min(digits, 6)}f}" for p in places]
