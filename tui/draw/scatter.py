"""A Series as a scatter of marks in cells: outliers hollow, one point highlighted, points that
share a cell as Braille dots in it, those off the scale as carets above the others."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from core.plots import palette, ticks
from tui.draw.text import Line, Span, fit, line
from tui.draw.theme import BACKENDS, HOLLOW, MARKS

if TYPE_CHECKING:
    from core.plots.figure import Series

LEAST = (24, 6)  # columns and rows
TICK_ROWS, TICK_COLUMNS = 2, 12  # a tick at most every so many cells
MOST_TICKS = 7
BRAILLE = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # bit of a dot, by column and row


class Dot(NamedTuple):
    """One point. `group`: its backend's place. `mark`: its own, else its backend's. `low`, `high`:
    the ends of its interval. `far`: above the scale."""

    group: int
    id: str
    x: float
    y: float
    outlier: bool = False
    mark: str = ""
    low: float | None = None
    high: float | None = None
    far: bool = False


def dots(series: Series, *, outliers: bool) -> list[Dot]:
    return [
        Dot(
            group.place,
            f"{group.name}/{group.labels[i]}",
            float(group.x[i]),
            float(group.y[i]),
            bool(group.outlier[i]),
            far=bool(not group.drawn[i]),
        )
        for group in series.groups
        for i in (~group.drawn | (group.drawn if outliers else group.full)).nonzero()[0].tolist()
    ]


def legend(series: Series, width: int, *, outliers: bool) -> list[Line]:
    """Each backend's mark and how many of its points are drawn; how many are outliers, and which
    is highest of those off the scale."""
    spans: list[Span] = []
    for group in series.groups:
        spans += [
            (f"{MARKS[group.place % 4]} {group.name}", BACKENDS[group.place % 4]),
            (f" n={int(group.full.sum())}   ", "dim"),
        ]
    hollow = sum(int(group.hollow.sum()) for group in series.groups)
    odd: list[str] = []
    if hollow:
        marks = "".join(HOLLOW[group.place % 4] for group in series.groups)
        shown = f"{hollow} beyond 1.5 IQR"
        odd.append(f"{marks} {shown}" if outliers else f"{shown} hidden")
    far = [(g.y[i], f"{g.name}/{g.labels[i]}") for g in series.groups for i in g.off_scale]
    if far:
        y, name = max(far)
        more = f" and {len(far) - 1} more" if len(far) > 1 else ""
        odd.append(f"{palette.CARET} off the scale: {name} at {y:,.4g}{more}")
    said = ", ".join(odd)
    if sum(len(text) for text, _ in spans) + len(said) <= width:
        return [Line((*spans, (said, "dim")))]
    return [Line(tuple(spans)), line((fit(said, width), "dim"))]


def draw(
    points: Sequence[Dot], width: int, height: int, here: str = "", *, joined: bool = False
) -> list[Line]:
    """Axes with ticks and a mark for each point; `here` is the id to highlight. `joined`: points
    with the same id are one curve."""
    if width < LEAST[0] or height < LEAST[1] or not points:
        return [line((f"a plot needs {LEAST[0]}×{LEAST[1]} cells", "dim"))]
    reach = [end for p in points for end in (p.low, p.high) if end is not None]
    near, far = [p for p in points if not p.far], [p for p in points if p.far]
    xs, ys = _span([p.x for p in points]), _span([*(p.y for p in near), *reach])
    rows = height - 2 - bool(far)
    at, names = ticks.even(*ys, min(max(rows // TICK_ROWS, 2), MOST_TICKS))
    margin = max(map(len, names))
    frame = Frame(xs, ys, width - margin - 2, rows)
    labels = {frame.cell(xs[0], y)[0]: name for y, name in zip(at, names, strict=True)}
    cells = (_under(points, frame) if joined else {}) | _cells(near, frame, here)
    far.sort(key=lambda p: p.id == here)  # drawn last
    above = {(0, frame.cell(p.x, ys[1])[1]): _caret(p, here) for p in far}
    body = [
        Line(
            (
                (f"{labels.get(row, ''):>{margin}}{'┤' if row in labels else '│'}", "dim"),
                *_row(cells, row, frame.columns),
            )
        )
        for row in range(rows)
    ]
    carets = [Line(((" " * (margin + 1), ""), *_row(above, 0, frame.columns)))] if far else []
    return [*carets, *body, *_x_axis(frame, margin)]


def _caret(point: Dot, here: str) -> Span:
    """Of a point above the scale, over its place."""
    return (palette.CARET, "key" if point.id == here else BACKENDS[point.group % 4])


class Frame(NamedTuple):
    """The ranges of the axes, and how many cells they have."""

    xs: tuple[float, float]
    ys: tuple[float, float]
    columns: int
    rows: int

    def cell(self, x: float, y: float) -> tuple[int, int]:
        """(row, column)."""
        row, column = self._place(x, y)
        return int(row), int(column)

    def dot(self, x: float, y: float) -> int:
        """The bit of its Braille dot in its cell."""
        row, column = self._place(x, y)
        return BRAILLE[int(column % 1 * 2)][int(row % 1 * 4)]

    def _place(self, x: float, y: float) -> tuple[float, float]:
        down = (self.ys[1] - y) / (self.ys[1] - self.ys[0])
        across = (x - self.xs[0]) / (self.xs[1] - self.xs[0])
        return down * (self.rows - 1) + 0.5, across * (self.columns - 1) + 0.5


def _cells(points: Sequence[Dot], frame: Frame, here: str) -> dict[tuple[int, int], Span]:
    """(row, column) → the mark there."""
    shared: dict[tuple[int, int], list[Dot]] = {}
    for point in points:
        shared.setdefault(frame.cell(point.x, point.y), []).append(point)
    return {place: _mark(found, here, frame) for place, found in shared.items()}


def _under(points: Sequence[Dot], frame: Frame) -> dict[tuple[int, int], Span]:
    """What is under the marks: the lines between points of a curve, and the intervals."""
    cells: dict[tuple[int, int], Span] = {}
    for one, other in itertools.pairwise(points):
        if one.id == other.id:
            columns = abs(frame.cell(other.x, other.y)[1] - frame.cell(one.x, one.y)[1])
            for step in range(1, columns):
                share = step / columns
                place = frame.cell(_at((one.x, other.x), share), _at((one.y, other.y), share))
                cells[place] = ("·", BACKENDS[one.group % 4])
    for point in points:
        if point.low is not None and point.high is not None:
            column = frame.cell(point.x, point.y)[1]
            rows = range(frame.cell(point.x, point.high)[0], frame.cell(point.x, point.low)[0] + 1)
            cells |= {(row, column): ("│", BACKENDS[point.group % 4]) for row in rows}
    return cells


def _mark(found: Sequence[Dot], here: str, frame: Frame) -> Span:
    """That of the only point, or of the chosen one; dots for several, bright if their backends
    differ; the mark for several of one backend that would be one dot."""
    chosen = next((p for p in found if p.id == here), None)
    point = chosen or found[0]
    if chosen is None and len({(p.x, p.y, p.group) for p in found}) > 1:
        dots = {frame.dot(p.x, p.y) for p in found}
        is_mixed = len({p.group for p in found}) > 1
        if is_mixed or len(dots) > 1:
            return (chr(0x2800 + sum(dots)), "strong" if is_mixed else BACKENDS[point.group % 4])
    mark = point.mark or (HOLLOW if point.outlier else MARKS)[point.group % 4]
    return (mark, "key" if chosen else BACKENDS[point.group % 4])


def _row(cells: dict[tuple[int, int], Span], row: int, columns: int) -> list[Span]:
    spans: list[Span] = []
    done = 0
    for column in sorted(c for r, c in cells if r == row):
        spans += [(" " * (column - done), ""), cells[row, column]]
        done = column + 1
    return [*spans, (" " * (columns - done), "")]


def _x_axis(frame: Frame, margin: int) -> list[Line]:
    at, names = ticks.even(*frame.xs, min(max(frame.columns // TICK_COLUMNS, 2), MOST_TICKS))
    places = [frame.cell(x, frame.ys[0])[1] for x in at]
    rule = "".join("┬" if c in places else "─" for c in range(frame.columns))
    text = [" "] * (frame.columns + margin + 2)
    for place, name in zip(places, names, strict=True):
        start = min(max(0, margin + 1 + place - len(name) // 2), len(text) - len(name))
        text[start : start + len(name)] = name
    return [
        line((f"{'':>{margin}}└{rule}", "dim")),
        line((fit("".join(text), frame.columns + margin + 2), "dim")),
    ]


def _span(values: Sequence[float]) -> tuple[float, float]:
    """The range drawn: the values' own, a twentieth wider on both sides, but not below 0 if no
    value is."""
    low, high = min(values), max(values)
    edge = (high - low) / 20 or abs(low) / 10 or 1.0
    return max(low - edge, 0.0) if low >= 0 else low - edge, high + edge


def _at(span: tuple[float, float], share: float) -> float:
    return span[0] + share * (span[1] - span[0])
