"""What a search found, in words and as a table of its points."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from core.analysis.limits import Limit, Point
from core.files import formatted, write_whole
from core.stats.bootstrap import Interval


def lines(found: Sequence[Limit]) -> Iterator[str]:
    for one in found:
        yield in_words(one)
        yield f"  {one.over:>16}{'share':>8}  {'95 % interval':<18}{'requests':>9}{'starts':>8}"
        for point, interval in zip(one.points, one.intervals, strict=True):
            yield f"  {_row(point, interval)}"
        yield ""


def in_words(one: Limit) -> str:
    """`all2all: at a share of 0.99 the objective is met up to max_concurrency = 24 [16, 28]`."""
    so_far = "" if one.is_done else "so far, "
    if one.value is None:
        return f"{one.base}: {so_far}{one.note or 'nothing was measured'}"
    ends = f"[{_end(one.low)}, {_end(one.high)}]"
    note = f"; {one.note}" if one.note else ""
    return (
        f"{one.base}: {so_far}a share of {one.share:g} meets the objective up to"
        f" {one.over} = {one.value:g} {ends}{note}"
    )


def write(path: Path, found: Sequence[Limit]) -> list[Path]:
    """limits.json in the sweep's folder; nothing where nothing was searched."""
    if not found:
        return []
    write_whole(path / "limits.json", formatted(found))
    return [path / "limits.json"]


def _row(point: Point, interval: Interval) -> str:
    ends = f"[{interval[0]:.3f}, {interval[1]:.3f}]"
    early = "  ended early: missed whatever came" if point.ended_early else ""
    counts = f"{point.requests:>9}{point.starts:>8}"
    return f"{point.load:>16g}{point.share:>8.3f}  {ends:<18}{counts}{early}"


def _end(load: float | None) -> str:
    return "?" if load is None else f"{load:g}"
