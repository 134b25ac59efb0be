"""Forced and replayed routing in tables: its own column, if any run has either."""

from __future__ import annotations

from core.experiment.dose import Dose
from core.experiment.state import RunState
from tui.draw.table import Column
from tui.draw.text import Role, Span
from tui.model.view import View

FORCED = Column("forced to", 16, 8, right=False)


def columns(kept: tuple[Column, ...], view: View, after: str) -> tuple[Column, ...]:
    """`kept` with what routing is forced to behind the column titled `after`; unchanged if all is
    natural."""
    if not any(run.run.imposed for run in view.snapshot.runs.values()):
        return kept
    place = next(n for n, column in enumerate(kept, 1) if column.title == after)
    return (*kept[:place], FORCED, *kept[place:])


def cells(run: RunState, title: str, name: str, role: Role = "") -> dict[str, Span | str]:
    """The name without what its routing is forced to under `title`, and that in its own column."""
    return {title: (name.partition("~")[0], role), FORCED.title: (_imposed(run), "warn")}


def _imposed(run: RunState) -> str:
    """`hot-rank 0.5`, or `replay 007`; empty for natural routing."""
    if run.run.replay:
        return f"replay {run.run.replay.source}"
    dose: Dose | None = run.run.dose
    return f"{dose.pattern} {dose.level:g}" if dose else ""
