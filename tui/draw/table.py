"""A table drawn as lines; columns that do not fit are dropped, the least needed first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tui.draw.text import Line, Role, Span, fit

GAP = 1


@dataclass(frozen=True, slots=True)
class Column:
    """`need`: if not all columns fit, the one with the lowest is dropped first."""

    title: str
    width: int
    need: int = 5
    right: bool = True


def fitting(columns: Sequence[Column], width: int) -> tuple[Column, ...]:
    """As many columns as fit into `width` cells, in their order."""
    kept = list(columns)
    while len(kept) > 1 and sum(c.width + GAP for c in kept) - GAP > width:
        kept.remove(min(reversed(kept), key=lambda c: c.need))
    return tuple(kept)


def widened(columns: Sequence[Column], title: str, needed: int, width: int) -> tuple[Column, ...]:
    """The columns, that one as wide as needed, as far as there is room."""
    spare = max(0, width - sum(c.width + GAP for c in columns) + GAP)
    return tuple(
        replace(c, width=max(c.width, min(needed, c.width + spare))) if c.title == title else c
        for c in columns
    )


def head(columns: Sequence[Column], sorted_by: str = "", mark: str = "") -> Line:
    """The titles; `mark` stands at the column that the rows are sorted by."""
    spans: list[Span] = []
    for column in columns:
        is_key = column.title == sorted_by
        title = column.title
        if is_key:
            title = f"{mark}{title}" if column.right else f"{title}{mark}"
        cell = _cell(title, column, last=column is columns[-1])
        spans.append((cell, "strong" if is_key else "dim"))
    return Line(tuple(spans))


def row(
    columns: Sequence[Column],
    cells: Mapping[str, Span | str],
    *,
    cursor: bool = False,
    rest: Span | None = None,
) -> Line:
    """One line; `cells` by column title. `rest` replaces the columns after the last cell."""
    spans: list[tuple[str, Role]] = []
    last = (
        max((n for n, c in enumerate(columns) if c.title in cells), default=-1)
        if rest
        else len(columns) - 1
    )
    for place, column in enumerate(columns[: last + 1]):
        cell = cells.get(column.title, "")
        text, role = (cell, "") if isinstance(cell, str) else cell
        spans.append((_cell(text, column, last=place == len(columns) - 1), role))
    if rest and (left := sum(c.width + GAP for c in columns[last + 1 :]) - GAP) > 0:
        spans.append((fit(rest[0], left), rest[1]))
    return Line(tuple(spans), cursor)


def _cell(text: str, column: Column, *, last: bool) -> str:
    return fit(text, column.width, right=column.right) + ("" if last else " " * GAP)
