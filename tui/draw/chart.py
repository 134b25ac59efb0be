"""Values over time: as one row of bars, and as a chart of several rows with its scale."""

from __future__ import annotations

from collections.abc import Sequence

from tui.draw.text import BARS, Line, Role, fit, line, number

CLIPPED = "▲"  # the top of a bar that is higher than the scale
ENOUGH = 8  # values from which a spike can be told from the rest
SPIKE = 2.5  # times the 90th percentile
SCALE = 7  # cells of a number at the scale's end


def amount(value: float | None, digits: int) -> str:
    """With so many decimals, from a thousand on with none."""
    return number(value, digits if value is None or value < 1000 else 0)


def top(values: Sequence[float | None]) -> float:
    """The upper end of the scale: the largest value, unless that is a spike which would flatten
    the rest."""
    known = sorted(v for v in values if v is not None)
    if not known:
        return 0.0
    high = known[int(0.9 * (len(known) - 1))]
    is_spike = len(known) >= ENOUGH and high > 0 and known[-1] > SPIKE * high
    return 1.25 * high if is_spike else known[-1]


def squeezed(values: Sequence[float | None], width: int) -> list[float | None]:
    """At most `width` values: means of as many neighbours as it takes, counted from the first
    value."""
    each = max(1, -(-len(values) // max(width, 1)))
    groups = [values[i : i + each] for i in range(0, len(values), each)]
    known = [[v for v in group if v is not None] for group in groups]
    return [sum(group) / len(group) if group else None for group in known]


def bars(values: Sequence[float | None], end: float, rows: int = 1) -> list[str]:
    """Bars from 0 to `end`, top row first; a value that is not known is blank, one beyond the end
    is marked."""
    drawn = [""] * rows
    for value in values:
        share = 0.0 if not value or end <= 0 else value / end
        eighths = 0 if value is None else max(1, round(min(share, 1.0) * 8 * rows))
        for row in range(rows):
            full = eighths - 8 * (rows - 1 - row)
            is_cut = row == 0 and share > 1.0
            drawn[row] += CLIPPED if is_cut else BARS[min(full, 8) - 1] if full > 0 else " "
    return drawn


def spark(values: Sequence[float | None], width: int, digits: int) -> str:
    """The last values in `width` cells, with both ends of the scale: `0▕▂▃▅▏156`."""
    room = max(width - SCALE - 3, 1)
    shown = values[-room:]
    end = top(shown)
    scale = amount(end, digits) if end else ""
    return f"0▕{bars(shown, end)[0].ljust(room)}▏{scale:<{SCALE}}"


def chart(
    title: str, values: Sequence[float | None], width: int, height: int, digits: int, role: Role
) -> list[Line]:
    """A title, and bars over time beside their scale; all of the values, however many."""
    rows, room = height - 1, width - SCALE - 2
    shown = squeezed(values, room)
    end = top(shown)
    ends = {0: amount(end, digits) if end else "", rows - 1: "0"}
    body = [
        line((f"{ends.get(row, ''):>{SCALE}}{'┤' if row in ends else '│'}", "dim"), (text, role))
        for row, text in enumerate(bars(shown, end, rows))
    ]
    return [line((fit(title, width), "strong")), *body]
