"""What a search found, in words and as a table of its points."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from core.analysis.limits import Limit, Point
from core.files import formatted, write_whole
from core.stats.bootstrap import Interval


def lines(found: Sequence[Limit]) -> Iterator[str]:
    for one in found:
        yield one.in_words
        yield f"  {one.over:>16}{'share':>8}  {'95 %, requests':<18}{'requests':>9}{'starts':>8}"
        for point, interval in zip(one.points, one.intervals, strict=True):
            yield f"  {_row(point, interval)}"
        yield ""


def write(path: Path, found: Sequence[Limit]) -> list[Path]:
    """limits.json in the sweep's folder; nothing where nothing was searched."""
    if not found:
        return []
    write_whole(path / "limits.json", formatted(found))
    return [path / "limits.json"]


def _row(point: Point, interval: Interval) -> str:
    ends = f"[{interval[0]:.3f}, {interval[1]:.3f}]"
    early = "  ended early: missed whatever came" if point.ended_early else ""
    counts = f"{point.requests:>9}{len(point.parts):>8}"
    return f"{point.load:>16g}{point.share:>8.3f}  {ends:<18}{counts}{early}"
