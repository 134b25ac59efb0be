"""Figures → a PNG, two panels a row. matplotlib is imported where it draws."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.plots import palette
from core.plots.figure import VALUES, Bars, Curve, Figure, HeatMap, Points, Series
from core.plots.folding import each
from core.stats.arrays import Floats

DPI = 120
PANEL = (8.0, 5.4)  # inches
NARROW, NARROW_DPI = (4.2, 3.8), 160  # inches: legible where a panel is as wide as a phone
LETTERS = 10  # per inch, in the note below a panel
TWO_COLUMNS = 70  # letters that a legend of two columns needs
FEW = 80  # points of a curve up to here are marked
ANNOTATED = 400  # cells up to here show their number
HEAT_TICKS = (0.5, 0.7, 1.0, 1.4, 2.0)


def write(panels: Figure | Sequence[Figure], file: Path) -> Path:
    """Write the PNG, with title and note in its metadata; its folder is made where missing. OSError
    where it cannot."""
    figures = [panels] if isinstance(panels, Series | HeatMap | Bars) else list(panels)
    columns = min(len(figures), 2)
    file.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "Title": "; ".join(_title(f) for f in figures),
        "Description": "; ".join(t for f in figures for t in (f.invalid, f.note) if t),
    }
    panel = (PANEL[0] * (0.8 if columns == 2 else 1), PANEL[1])
    canvas = _canvas(figures, columns, panel)
    canvas.savefig(file, metadata={**about, "Software": "gatescope"})
    return file


def narrow(figures: Sequence[Figure]) -> bytes:
    """A PNG of the panels below each other, for a phone."""
    made = io.BytesIO()
    _canvas(figures, 1, NARROW, NARROW_DPI).savefig(made, metadata={"Software": "gatescope"})
    return made.getvalue()


def _canvas(
    figures: Sequence[Figure], columns: int, panel: tuple[float, float], dpi: int = DPI
) -> Any:
    """The panels, drawn in so many columns; `panel` in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows, (width, height) = -(-len(figures) // columns), panel
    size = (width * columns, max(_height(f, height) for f in figures) * rows)
    layout = ConstrainedLayoutEngine()
    canvas = Canvas(figsize=size, dpi=dpi, layout=layout)
    FigureCanvasAgg(canvas)
    for place, figure in enumerate(figures, 1):
        _draw(figure, canvas.add_subplot(rows, columns, place), round(LETTERS * width))
    # Laid out here, once: with a layout engine of its own, savefig draws every figure twice.
    layout.execute(canvas)
    canvas.set_layout_engine("none")
    return canvas


def _height(figure: Figure, least: float) -> float:
    """A heat map of many layers grows; everything else has the same height."""
    return max(least, 1.6 + 0.16 * len(figure.values)) if isinstance(figure, HeatMap) else least


def _title(figure: Figure) -> str:
    return f"{figure.title} · {figure.engine}" if figure.engine else figure.title


def _draw(figure: Figure, axes: Any, letters: int) -> None:
    """`letters`: how many of a note stand on a line."""
    heading = [figure.title, figure.engine, figure.invalid]
    title = [row for line in heading for row in textwrap.wrap(line, letters)]
    axes.set_title("\n".join(title), fontsize=11)
    axes.set_xlabel("\n".join([figure.x_label, *textwrap.wrap(figure.note, letters)]))
    axes.set_ylabel(figure.y_label)
    match figure:
        case HeatMap():
            _draw_heat_map(figure, axes)
        case Bars():
            _draw_bars(figure, axes)
            if figure.lines:
                _add_legend(axes, letters)
        case Series():
            _draw_series(figure, axes)
            if figure.groups or figure.curves:
                _add_legend(axes, letters)
    if figure.invalid:
        _draw_invalid(axes)


def _add_legend(axes: Any, letters: int) -> None:
    """Between the title and the plot, so that it covers no point."""
    columns = 2 if letters >= TWO_COLUMNS else 1
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=columns,
        frameon=False,
        fontsize=9,
        borderaxespad=0.1,
    )
    rows = -(-len(axes.get_legend().get_texts()) // columns)
    axes.set_title(axes.get_title(), fontsize=11, pad=10 + 16 * rows)


def _draw_invalid(axes: Any) -> None:
    """The word across the picture, whose title has the rules."""
    colour = palette.INVALID[0]
    axes.title.set_color(colour)
    axes.text(
        0.5,
        0.5,
        "INVALID",
        transform=axes.transAxes,
        rotation=25,
        fontsize=64,
        weight="bold",
        color=colour,
        alpha=0.3,
        ha="center",
        va="center",
        zorder=10,
    )


def _draw_series(series: Series, axes: Any) -> None:
    for group in series.groups:
        if group.drawn.any():
            _draw_points(group, axes)
    for curve in series.curves:
        _draw_curve(curve, axes)
    for group in series.groups:
        _draw_off_scale(group, axes)
    if series.log_x:
        _log_x(series, axes)
    axes.grid(alpha=0.3)


def _draw_off_scale(group: Points, axes: Any) -> None:
    """A caret at the upper edge for each point above it, with its value where they are few."""
    above = group.off_scale
    if not len(above):
        return
    edge = axes.get_xaxis_transform()
    axes.scatter(
        group.x[above],
        np.full(len(above), 0.985),
        marker=palette.CARET,
        color=palette.colour(group.place),
        s=36,
        transform=edge,
        zorder=6,
    )
    for place in above if len(above) <= VALUES else above[:1]:
        axes.annotate(
            f"{group.y[place]:.4g}",
            (group.x[place], 0.985),
            xycoords=edge,
            xytext=(0, -6),
            textcoords="offset points",
            rotation=90,
            ha="center",
            va="top",
            fontsize=8,
            color=palette.colour(group.place),
        )


def _draw_points(group: Points, axes: Any) -> None:
    place = group.place
    x, y, many = group.x[group.drawn], group.y[group.drawn], group.is_cloud
    colour = palette.colour(place)
    bars = [
        _error(values, ends, group)
        for values, ends in ((x, group.x_interval), (y, group.y_interval))
    ]
    if not many and any(b is not None for b in bars):
        axes.errorbar(
            x, y, xerr=bars[0], yerr=bars[1], fmt="none", ecolor=colour, elinewidth=0.7, alpha=0.35
        )
    marked = {"s": 5 if many else 30, "alpha": 0.25 if many else 0.85, "rasterized": many}
    axes.scatter(
        group.x[group.full],
        group.y[group.full],
        marker=palette.png_mark(place),
        color=colour,
        label=group.in_legend,
        linewidths=0.5 if many else None,
        **marked,
    )
    if group.hollow.any():
        axes.scatter(
            group.x[group.hollow],
            group.y[group.hollow],
            marker=palette.png_hollow(place),
            facecolors="none",
            edgecolors=colour,
            label=group.hollow_in_legend,
            **marked,
        )


def _error(values: Floats, ends: Floats | None, group: Points) -> Floats | None:
    """[2, n]: how far an interval reaches below and above; nothing where it is unknown."""
    if ends is None:
        return None
    drawn = ends[group.drawn]
    return _reach(values, drawn[:, 0], drawn[:, 1])


def _reach(values: Floats, low: Floats, high: Floats) -> Floats:
    """[2, n]: how far intervals reach below and above; nothing where they are unknown. By rounding
    alone, the interval of equal values may lie beside their mean, and matplotlib takes no negative
    length."""
    return np.asarray(np.nan_to_num(np.maximum([values - low, high - values], 0.0)))


def _draw_curve(curve: Curve, axes: Any) -> None:
    colour = palette.colour(curve.place)
    dash = (
        ":"
        if curve.stroke == "dotted"
        else palette.PNG_DASHES[curve.place % len(palette.PNG_DASHES)]
    )
    drawn = {"color": colour, "label": curve.name}
    if curve.stroke == "doses":
        _draw_doses(curve, axes)
        return
    if curve.stroke == "ticks":
        axes.plot(curve.x, curve.y, linestyle="none", marker="_", markersize=9, zorder=3, **drawn)
        return
    if curve.stroke == "bars":
        reach = (
            None
            if curve.low is None or curve.high is None
            else _reach(curve.y, curve.low, curve.high)
        )
        axes.errorbar(
            curve.x,
            curve.y,
            yerr=reach,
            fmt=palette.png_mark(curve.place),
            capsize=3,
            zorder=4,
            **drawn,
        )
        return
    where = {"drawstyle": "steps-post"} if curve.stroke == "steps" else {}
    marked = curve.stroke == "line" and len(curve.x) <= FEW
    axes.plot(
        curve.x,
        curve.y,
        linestyle=dash,
        linewidth=1.6,
        zorder=3,
        marker=palette.png_mark(curve.place) if marked else None,
        markersize=4,
        **where,
        **drawn,
    )
    if curve.low is not None and curve.high is not None:
        step = {"step": "post"} if curve.stroke == "steps" else {}
        axes.fill_between(
            curve.x, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0, **step
        )


def _draw_doses(curve: Curve, axes: Any) -> None:
    """Levels joined by a line, each with its interval; a single level is drawn hollow."""
    mark, alone = curve.place if curve.mark is None else curve.mark, len(curve.x) == 1
    reach = None
    if curve.low is not None and curve.high is not None and np.isfinite(curve.low).any():
        reach = _reach(curve.y, curve.low, curve.high)
    axes.errorbar(
        curve.x,
        curve.y,
        yerr=reach,
        fmt=palette.dose_mark(mark),
        color=palette.colour(curve.place),
        linestyle="none" if alone else palette.PNG_DASHES[mark % len(palette.PNG_DASHES)],
        markerfacecolor="none" if alone else None,
        markersize=9 if alone else 6,
        linewidth=1.4,
        elinewidth=0.9,
        capsize=3,
        label=curve.name,
        zorder=4,
    )


def _log_x(series: Series, axes: Any) -> None:
    from core.plots import ticks

    xs, _ = series.shown
    axes.set_xscale("log")
    axes.set_xticks(*ticks.decades(float(xs.min()), float(xs.max())))
    axes.minorticks_off()


def _draw_heat_map(figure: HeatMap, axes: Any) -> None:
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    low, high = palette.HEAT_ENDS
    image = axes.imshow(
        np.clip(figure.values, low, high),
        cmap=LinearSegmentedColormap.from_list("heat", palette.HEAT),
        norm=LogNorm(low, high),
        aspect="auto",
        interpolation="nearest",
    )
    bar = axes.figure.colorbar(image, ax=axes, label=figure.unit)
    bar.set_ticks(HEAT_TICKS, labels=[_heat_label(tick) for tick in HEAT_TICKS])
    bar.minorticks_off()
    for axis, count, most in (
        (axes.yaxis, figure.values.shape[0], 32),
        (axes.xaxis, figure.values.shape[1], 16),
    ):
        axis.set_ticks(range(0, count, each(count, most)))
    axes.set_yticklabels([str(figure.row(int(place))) for place in axes.get_yticks()])
    if figure.values.size <= ANNOTATED:
        for (row, column), value in np.ndenumerate(figure.values):
            dark = palette.heat_level(value) in palette.HEAT_DARK
            axes.text(
                column,
                row,
                f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=7,
                color="w" if dark else "k",
            )


def _heat_label(tick: float) -> str:
    low, high = palette.HEAT_ENDS
    return f"{'≤ ' if tick == low else '≥ ' if tick == high else ''}{tick:g}"


def _draw_bars(figure: Bars, axes: Any) -> None:
    reach = None
    if figure.low is not None and figure.high is not None:
        reach = _reach(figure.values, figure.low, figure.high)
    places = np.arange(len(figure.values))
    axes.bar(
        places, figure.values, color=palette.colour(figure.place), yerr=reach, capsize=3, width=0.75
    )
    axes.set_xticks(places, figure.names, rotation=90 if len(places) > 16 else 0)
    for place, (name, level) in enumerate(figure.lines):
        axes.axhline(
            level,
            color="black",
            linestyle=palette.PNG_DASHES[place % 4],
            label=f"{name}: {level:.2f}",
        )
    axes.grid(axis="y", alpha=0.3)
